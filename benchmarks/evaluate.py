"""How fast nlora scores beside the released way, and whether it predicts the same.

    python benchmarks/evaluate.py                              # smollm2 on agnews and dbpedia: about ten minutes
    python benchmarks/evaluate.py --datasets agnews --examples 64 --rounds 1

The contestants score the same test examples with the same model and the same update:

    released-16     batches of 16 in the file's order, padded to their longest; `generate`, greedy, up to 50 new
                    tokens; then a pass over prompt and answer with the logits of every position, for the loss.
                    The adapter is beside the weights. 16 rows are what the released scripts take for LLaMA
    released-64     the same in batches of 64, as nlora's
    generate        nlora with evaluate.decode: generate; the update is folded into the weights, as in a run
                    (beside weights of bfloat16, as there)
    labels          nlora with evaluate.decode: labels

The update is trained by nlora on a few examples of the data set (`--train-examples`), so that answers are labels and
end; it is kept in `--folder` and taken from there next time. Prompts are tokenized beforehand, for everybody. A
ratio is taken within a round. "Same text" compares the first round's answers, example by example: the update beside
the weights and in them rounds differently, as do batches of another width, so a near tie can fall the other way.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

import measure
from measure import Spread
from nlora.config.schema import EvaluateOptions, LoraOptions
from nlora.config.train_options import TrainOptions
from nlora.data.collate import IGNORED
from nlora.data.digest import text_digest
from nlora.data.task import Task, TokenizedExample
from nlora.data.tokenize import ExampleTokenizer
from nlora.evaluation.evaluator import Evaluator
from nlora.evaluation.text_metrics import exact_match
from nlora.models.backbone import Backbone
from nlora.models.lora_adapter import LoraAdapter
from nlora.models.lora_factors import AdapterState, load_factors
from nlora.models.target_modules import target_modules
from nlora.runs.update_history import keep_updates
from nlora.training.trainer import train
from one_line import one_line_errors

LORA = LoraOptions(r=8, alpha=32, dropout=0.1)
NEW_TOKENS = 50
SEED = 1


@dataclass(frozen=True, slots=True)
class Turn:
    """One contestant's answers to a round's examples."""

    seconds: float
    texts: tuple[str, ...]
    answer_tokens: float | None


Contestant = Callable[[int], Turn]


def trained(
    backbone: Backbone, encoder: ExampleTokenizer, task: Task, options: argparse.Namespace
) -> AdapterState:
    """The task's update, from the folder or trained now; the backbone stays as it was.

    Its folder's name tells apart all that it depends on: the model and its dtype, the epochs, the examples.
    """
    examples = encoder.encode(task, task.train[: options.train_examples])
    rows = [[list(e.prompt_ids), list(e.answer_ids)] for e in examples]
    digest = text_digest([options.model, json.dumps(rows)])[:8]
    name = f"{Path(options.model).name}-{options.dtype}-{task.name}-{len(rows)}-{options.epochs:g}-{digest}"
    folder = Path(options.folder) / name
    if not folder.is_dir():
        print(f"training {name}", file=sys.stderr, flush=True)
        model: Any = backbone.model
        adapter = LoraAdapter.attach(model, LORA, seed=SEED)
        plan = TrainOptions(epochs=options.epochs, batch_size=8, learning_rate=1e-3)
        try:
            with tempfile.TemporaryDirectory() as logs:
                train(backbone, adapter, examples, plan, penalty=lambda: None, seed=SEED, folder=Path(logs))
            adapter.save(folder, base_model=options.model)
        finally:
            adapter.detach()
    return load_factors(folder)


def released(
    model: Any, backbone: Backbone, examples: Sequence[TokenizedExample], batch_size: int
) -> Contestant:
    """The released protocol: generate, then a pass over prompt and answer."""
    tokenizer: Any = backbone.tokenizer
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    greedy = GenerationConfig(
        max_new_tokens=NEW_TOKENS, do_sample=False, num_beams=1, eos_token_id=end, pad_token_id=pad
    )
    device = next(model.parameters()).device

    def padded(rows: Sequence[Sequence[int]], value: int) -> torch.Tensor:
        width = max(map(len, rows))
        left = not backbone.encoder_decoder
        fill = [[value] * (width - len(row)) for row in rows]
        whole = [[*f, *row] if left else [*row, *f] for f, row in zip(fill, rows, strict=True)]
        return torch.tensor(whole, device=device)

    def inputs(rows: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
        return {"input_ids": padded(rows, pad), "attention_mask": padded([[1] * len(r) for r in rows], 0)}

    def loss(some: Sequence[TokenizedExample]) -> float:
        answers = [list(e.answer_ids) for e in some]
        prompts = [list(e.prompt_ids) for e in some]
        if backbone.encoder_decoder:
            return float(model(**inputs(prompts), labels=padded(answers, IGNORED), use_cache=False).loss)
        labels = [[IGNORED] * len(p) + a for p, a in zip(prompts, answers, strict=True)]
        whole = inputs([p + a for p, a in zip(prompts, answers, strict=True)])
        return float(model(**whole, labels=padded(labels, IGNORED), use_cache=False).loss)

    @torch.no_grad()
    def turn(number: int) -> Turn:
        texts: list[str] = []
        tokens = 0
        begin = time.perf_counter()
        for start in range(0, len(examples), batch_size):
            some = examples[start : start + batch_size]
            batch = inputs([e.prompt_ids for e in some])
            output = model.generate(**batch, generation_config=greedy)
            answers = output[:, 1 if backbone.encoder_decoder else batch["input_ids"].shape[1] :]
            texts += [t.strip() for t in tokenizer.batch_decode(answers, skip_special_tokens=True)]
            tokens += sum(row.index(end) + 1 if end in row else len(row) for row in answers.tolist())
            loss(some)
        return Turn(time.perf_counter() - begin, tuple(texts), tokens / len(examples))

    return turn


def nlora(backbone: Backbone, encoder: ExampleTokenizer, task: Task, decode: Any) -> Contestant:
    """nlora's evaluation as a run does it after a stage."""
    evaluator = Evaluator(backbone, encoder, EvaluateOptions(decode=decode))

    def turn(number: int) -> Turn:
        answers = evaluator.answer(task)
        return Turn(answers.seconds, answers.texts, answers.answer_tokens)

    return turn


def measure_task(name: str, options: argparse.Namespace, models: tuple[Backbone, Backbone]) -> dict[str, Any]:
    """Every contestant's turns on one data set, as figures."""
    beside, folded = models
    encoder = ExampleTokenizer(
        beside.tokenizer,
        encoder_decoder=beside.encoder_decoder,
        max_source_tokens=512,
        max_target_tokens=NEW_TOKENS,
    )
    task = measure.read_task(options.data, name)
    state = trained(beside, encoder, task, options)
    task = replace(task, test=task.test[: options.examples])
    examples = encoder.encode(task, task.test)
    weights = keep_updates(folded.model, [m.name for m in target_modules(folded.model, LORA)])
    weights.activate([state])
    model: Any = beside.model
    adapter = LoraAdapter.attach(model, LORA, seed=SEED)
    adapter.load_state(state)
    adapter.model.eval()
    contestants = {
        **{f"released-{n}": released(adapter.model, beside, examples, n) for n in options.released_batches},
        "generate": nlora(folded, encoder, task, "generate"),
        "labels": nlora(folded, encoder, task, "labels"),
    }
    for decode in ("generate", "labels"):
        contestants[decode](0)  # the prompts are tokenized now
    try:
        turns = measure.interleave(contestants, options.rounds)
    finally:
        adapter.detach()
        weights.deactivate()
    return figures(task, turns)


def figures(task: Task, turns: dict[str, list[Turn]]) -> dict[str, Any]:
    """What --json writes of one data set."""
    first = next(iter(turns))
    expected = turns[first][0].texts
    generated = turns["generate"][0].texts
    rates = {name: [len(expected) / t.seconds for t in some] for name, some in turns.items()}
    made: dict[str, Any] = {}
    for name, some in turns.items():
        texts = some[0].texts
        pairs = list(zip(texts, task.test, strict=True))
        made[name] = {
            "examples_per_second": rates[name],
            "times_as_fast": {
                other: asdict(measure.ratios(rates[name], rates[other]))
                for other in rates
                if other.startswith("released")
            },
            "accuracy_percent": 100 * sum(exact_match(t, e.label) for t, e in pairs) / len(pairs),
            "same_text_as_released": sum(a == b for a, b in zip(texts, expected, strict=True)),
            "same_text_as_generate": sum(a == b for a, b in zip(texts, generated, strict=True)),
            "same_in_every_round": all(t.texts == texts for t in some),
            "answer_tokens": some[0].answer_tokens,
            "differing": [
                {"id": e.id, first: b, name: a}
                for a, b, e in zip(texts, expected, task.test, strict=True)
                if a != b
            ],
        }
    return made


def shown(name: str, examples: int, made: dict[str, Any]) -> str:
    """The figures of one data set as a table."""
    references = [n for n in made if n.startswith("released")]
    header = [name, "examples/s", *[f"times {r}" for r in references]]
    header += ["accuracy", f"same text as {references[0]}", "same as generate", "tokens of an answer"]
    rows = []
    for contestant, f in made.items():
        tokens = f["answer_tokens"]
        rows.append(
            [
                contestant,
                Spread.of(f["examples_per_second"]),
                *[Spread(**f["times_as_fast"][r]) for r in references],
                f"{f['accuracy_percent']:.1f}",
                f"{f['same_text_as_released']} of {examples}",
                f"{f['same_text_as_generate']} of {examples}",
                "-" if tokens is None else f"{tokens:.1f}",
            ]
        )
    return measure.table(header, rows)


@one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Measures, prints a table per data set, writes JSON."""
    parser = measure.parser(__doc__)
    parser.set_defaults(rounds=3)
    measure.model_options(parser)
    parser.add_argument("--data", default=measure.default_data(), help="folder in the released layout")
    parser.add_argument("--datasets", nargs="+", default=["agnews", "dbpedia"], help="(default: both)")
    parser.add_argument("--examples", type=int, default=128, help="test examples, the file's first")
    parser.add_argument("--train-examples", type=int, default=160, help="(default: 160)")
    parser.add_argument("--epochs", type=float, default=1, help="of that training (default: 1)")
    parser.add_argument(
        "--released-batches", type=int, nargs="+", default=[16, 64], help="(default: 16 and 64)"
    )
    parser.add_argument("--folder", default="runs/evaluate", help="keeps the trained updates")
    options = parser.parse_args(argv)
    measure.start(options)
    beside, folded = (measure.read_model(options.model, options.dtype) for _ in range(2))
    made = {name: measure_task(name, options, (beside, folded)) for name in options.datasets}
    tables = [shown(name, options.examples, made[name]) for name in options.datasets]
    measure.report("evaluate", options, {"datasets": made}, *tables)


if __name__ == "__main__":
    main()
