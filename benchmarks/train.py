"""How fast nlora trains beside what a user would take instead, and how much memory it takes.

    python benchmarks/train.py                                  # smollm2, short prompts: about five minutes
    python benchmarks/train.py --dataset IMDB                   # long prompts
    python benchmarks/train.py --dtype bfloat16                 # a backbone of 16 bits, for everybody
    python benchmarks/train.py --contestants nlora torch-masks --steps 8 --no-memory   # what keyed masks cost
    python benchmarks/train.py --model t5-base-shape            # a random T5 of t5-base's shape

The contestants, each with LoRA of rank 8 on the query and value projections of the same frozen model:

    nlora           update_l1, as `nlora run` trains a stage
    plain-penalty   the same with the penalty written the plain way, λ·Σ|s·B@A| through autograd
    trainer         transformers' Trainer with PEFT's LoRA, dynamic padding, the prompt masked: no penalty
    grouped         the same with train_sampling_strategy="group_by_length"
    torch-masks     nlora with dropout's masks from torch's generator, which depend on how a step is split (CPU); only
                    if it is named

Over all rounds each of them trains once on each of the same examples, in batches as it would make them in a long
run: see `measure.of_rounds`. A turn is the whole of `Trainer.train()`; before the first round everyone has trained on
one batch. Positions per token: how many positions the model computed for each token of the data. Padding makes
it more than 1, a shared prefix less. The peak of memory is that of training on the longest examples.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import DataCollatorForSeq2Seq, PrinterCallback, Trainer, TrainingArguments
from transformers.trainer_pt_utils import get_length_grouped_indices

import measure
from measure import Spread
from nlora.config.schema import LoraOptions
from nlora.config.train_options import TrainOptions
from nlora.data.collate import IGNORED
from nlora.data.task import TokenizedExample
from nlora.methods.registry import build
from nlora.models.backbone import Backbone
from nlora.models.lora_adapter import LoraAdapter
from nlora.models.target_modules import target_names
from nlora.training.peak_memory import peak_memory_bytes
from nlora.training.trainer import train
from one_line import one_line_errors

LORA = LoraOptions(r=8, alpha=32, dropout=0.1)
LEARNING_RATE = 1e-3
CONTESTANTS = ("nlora", "plain-penalty", "trainer", "grouped")
TORCH_MASKS = "torch-masks"
_PENALTY_TRIES = 7


@dataclass(frozen=True, slots=True)
class Turn:
    """One contestant's training on a round's examples.

    positions: of tokens or padding that the model computed. penalty_seconds: the penalty of one step with
    its gradients, 0 without one.
    """

    seconds: float
    positions: int
    penalty_seconds: float = 0.0


Contestant = Callable[[Sequence[TokenizedExample], int], Turn]


def nlora(
    backbone: Backbone, batch_size: int, *, plain: bool = False, torch_masks: bool = False
) -> Contestant:
    """nlora as a run's first stage, with its own penalty and masks, or plain ones."""

    def turn(examples: Sequence[TokenizedExample], seed: int) -> Turn:
        model: Any = backbone.model
        adapter = LoraAdapter.attach(model, LORA, seed=seed)
        method: Any = build("nlora", {"penalty": "update_l1"})

        def penalty() -> Tensor | None:
            return plain_penalty(adapter, method.weight) if plain else method.penalty(adapter)

        options = TrainOptions(batch_size=batch_size, learning_rate=LEARNING_RATE)
        try:
            masks = mock.patch("nlora.training.trainer.masks_of", return_value=None)
            with (
                masks if torch_masks else nullcontext(),
                tempfile.TemporaryDirectory() as folder,
                measure.Positions(model) as positions,
            ):
                result = train(
                    backbone, adapter, examples, options, penalty=penalty, seed=seed, folder=Path(folder)
                )
            return Turn(result.seconds, positions.count, _seconds_of(penalty))
        finally:
            adapter.detach()

    return turn


def plain_penalty(adapter: LoraAdapter, weight: float) -> Tensor:
    """λ·Σ|s·B@A| as one writes it down; autograd keeps every update."""
    terms = [(f.scaling * (f.B @ f.A)).abs().sum() for f in adapter.factors().values()]
    return weight * torch.stack(terms).sum()


def plain_lora(backbone: Backbone, batch_size: int, grouped: bool) -> Contestant:
    """transformers' Trainer with PEFT's LoRA, as their documentation shows it."""
    tokenizer: Any = backbone.tokenizer

    def turn(examples: Sequence[TokenizedExample], seed: int) -> Turn:
        backbone_model: Any = backbone.model
        lora = LoraConfig(
            task_type="SEQ_2_SEQ_LM" if backbone.encoder_decoder else "CAUSAL_LM",
            r=LORA.r,
            lora_alpha=int(LORA.alpha),
            lora_dropout=LORA.dropout,
            target_modules=target_names(backbone.model, LORA),
        )
        model: Any = get_peft_model(backbone_model, lora)
        collator = DataCollatorForSeq2Seq(tokenizer, model=model if backbone.encoder_decoder else None)
        rows: Any = [_row(example, backbone.encoder_decoder) for example in examples]
        with tempfile.TemporaryDirectory() as folder, measure.Positions(backbone.model) as positions:
            arguments = TrainingArguments(
                output_dir=folder,
                num_train_epochs=1,
                per_device_train_batch_size=batch_size,
                learning_rate=LEARNING_RATE,
                train_sampling_strategy="group_by_length" if grouped else "random",
                logging_strategy="no",
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                dataloader_pin_memory=torch.cuda.is_available(),
                seed=seed,
            )
            kind = GroupedTrainer if grouped else Trainer
            trainer = kind(model=model, args=arguments, train_dataset=rows, data_collator=collator)
            trainer.remove_callback(PrinterCallback)
            begin = time.perf_counter()
            trainer.train()
            seconds = time.perf_counter() - begin
        model.unload()
        return Turn(seconds, positions.count)

    return turn


class GroupedTrainer(Trainer):
    """Groups by length as transformers does in a long run: it sorts 50 batches at a time.

    With few examples it sorts a quarter of them at a time, so in a short measurement it would hardly group.
    """

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        rows: Any = self.train_dataset
        lengths = [len(row["input_ids"]) for row in rows]
        return get_length_grouped_indices(lengths, self.args.train_batch_size, mega_batch_mult=50)


def _row(example: TokenizedExample, encoder_decoder: bool) -> dict[str, list[int]]:
    prompt, answer = list(example.prompt_ids), list(example.answer_ids)
    if encoder_decoder:
        return {"input_ids": prompt, "attention_mask": [1] * len(prompt), "labels": answer}
    ids = prompt + answer
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": [IGNORED] * len(prompt) + answer}


def _seconds_of(penalty: Callable[[], Tensor | None]) -> float:
    """Median time of the penalty of one step, its gradients included."""
    times = []
    for _ in range(_PENALTY_TRIES):
        begin = time.perf_counter()
        value: Any = penalty()
        value.backward()
        float(value.detach())  # waits for a GPU
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def contestant(name: str, backbone: Backbone, batch_size: int) -> Contestant:
    """One of CONTESTANTS, or TORCH_MASKS, over this backbone, which it leaves as it was."""
    if name in {"nlora", "plain-penalty", TORCH_MASKS}:
        return nlora(backbone, batch_size, plain=name == "plain-penalty", torch_masks=name == TORCH_MASKS)
    return plain_lora(backbone, batch_size, grouped=name == "grouped")


def measure_speed(options: argparse.Namespace) -> tuple[dict[str, list[Turn]], int]:
    """Everyone's turns, and the tokens of the examples of all rounds."""
    backbone = measure.read_model(options.model, options.dtype)
    pool = measure.read_examples(backbone, options)
    batches = measure.typical_batches(pool, options.batch_size, options.rounds * options.steps)
    turns: dict[str, Callable[[int], Turn]] = {}
    for name in options.contestants:
        turn = contestant(name, backbone, options.batch_size)
        turn(batches[0], 0)
        shares = measure.of_rounds(batches, options.rounds, by_length=name != "trainer")
        turns[name] = partial(_turn_of_round, turn, shares)
    tokens = sum(measure.tokens_of(example) for batch in batches for example in batch)
    return measure.interleave(turns, options.rounds), tokens


def _turn_of_round(turn: Contestant, shares: Sequence[list[TokenizedExample]], number: int) -> Turn:
    return turn(shares[number], number)


def measure_memory(options: argparse.Namespace, argv: Sequence[str]) -> dict[str, int]:
    """Peak of memory of each contestant in a process of its own, model included."""
    peaks = {}
    for name in options.contestants:
        print(f"memory: {name}", file=sys.stderr, flush=True)
        peaks[name] = measure.alone(Path(__file__), [*argv, "--alone", name])["peak_memory_bytes"]
    return peaks


def train_alone(options: argparse.Namespace) -> dict[str, int]:
    """Trains one contestant on the longest batch; the process's peak of memory."""
    backbone = measure.read_model(options.model, options.dtype)
    batch = measure.longest_batch(measure.read_examples(backbone, options), options.batch_size)
    contestant(options.alone, backbone, options.batch_size)(batch, 0)
    return {"peak_memory_bytes": peak_memory_bytes()}


def figures(
    turns: dict[str, list[Turn]], peaks: dict[str, int], steps: int, batch_size: int
) -> dict[str, Any]:
    """What --json writes of the contestants. `examples_per_second`: over all rounds; `of_rounds`: of each."""
    rates = {name: [steps * batch_size / t.seconds for t in some] for name, some in turns.items()}
    whole = {name: sum(t.seconds for t in some) for name, some in turns.items()}
    made: dict[str, Any] = {}
    for name, some in turns.items():
        made[name] = {
            "examples_per_second": len(some) * steps * batch_size / whole[name],
            "of_rounds": rates[name],
            "nlora_is_times_as_fast": whole[name] / whole["nlora"],
            "nlora_is_times_as_fast_in_rounds": [
                a / b for a, b in zip(rates["nlora"], rates[name], strict=True)
            ],
            "penalty_share_of_step": statistics.median(t.penalty_seconds * steps / t.seconds for t in some),
            "positions": sum(t.positions for t in some),
        }
        if peaks:
            made[name]["peak_memory_bytes"] = peaks[name]
            made[name]["nlora_peak_is_times_this"] = peaks["nlora"] / peaks[name]
    return made


def shown(made: dict[str, Any], tokens: int) -> str:
    """The figures as a table: totals, with the least and the most of a round behind them."""
    header = ["contestant", "examples/s", "nlora / this", "peak memory", "nlora / this"]
    header += ["positions per token", "penalty / step"]
    rows = []
    for name, f in made.items():
        peak = f.get("peak_memory_bytes")
        times = f["nlora_is_times_as_fast_in_rounds"]
        rows.append(
            [
                name,
                Spread(f["examples_per_second"], min(f["of_rounds"]), max(f["of_rounds"])),
                Spread(f["nlora_is_times_as_fast"], min(times), max(times)),
                measure.mib(peak) if peak else "-",
                f"{f['nlora_peak_is_times_this']:.2f}" if peak else "-",
                f"{f['positions'] / tokens:.2f}",
                f"{f['penalty_share_of_step']:.1%}" if f["penalty_share_of_step"] else "-",
            ]
        )
    return measure.table(header, rows)


@one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Measures, prints the table, writes JSON."""
    parser = measure.parser(__doc__)
    measure.data_options(parser, steps=2)
    parser.add_argument(
        "--contestants",
        nargs="+",
        choices=[*CONTESTANTS, TORCH_MASKS],
        default=list(CONTESTANTS),
        help=f"(default: all but {TORCH_MASKS})",
    )
    parser.add_argument("--no-memory", action="store_true", help="leave the processes for memory out")
    parser.add_argument("--alone", choices=[*CONTESTANTS, TORCH_MASKS], help=argparse.SUPPRESS)
    argv = list(sys.argv[1:] if argv is None else argv)
    options = parser.parse_args(argv)
    if "nlora" not in options.contestants:
        parser.error("the contestants are compared with nlora; name it, too")
    measure.start(options)
    if options.alone:
        measure.write_json(options.json, train_alone(options))
        return
    peaks = {} if options.no_memory else measure_memory(options, argv)
    turns, tokens = measure_speed(options)
    made = figures(turns, peaks, options.steps, options.batch_size)
    measure.report("train", options, {"tokens": tokens, "contestants": made}, shown(made, tokens))


if __name__ == "__main__":
    main()
