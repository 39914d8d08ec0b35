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
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import measure
from contestants import CONTESTANTS, TORCH_MASKS, Contestant, Turn, contestant
from measure import Spread
from nlora.data.task import TokenizedExample
from nlora.training.peak_memory import peak_memory_bytes
from one_line import one_line_errors


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
