"""What it costs that a batch has examples of several tasks, as with replay and mtl.

    python benchmarks/mixed.py                                       # the tasks of the demo: about five minutes
    python benchmarks/mixed.py --data ../shared/data/CL_Benchmark --datasets agnews dbpedia amazon

All contestants train nlora on the same examples, as many of each task:

    mixed           batches of all tasks; the beginning of each task runs once in a batch, where that saves tokens
    common-only     the same batches; only what all examples begin with runs once
    apart           batches of one task each, the tasks one after another: the least that it can cost

Over all rounds each of them trains once on each of the examples. Tokens per token: how many tokens the model computed
for each token of the data; a shared beginning makes it less than 1.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any
from unittest import mock

import measure
from contestants import Turn, nlora
from measure import Spread
from nlora.data.columns import TokenizedExamples
from nlora.data.task import TokenizedExample
from nlora.models.backbone import Backbone
from one_line import one_line_errors

CONTESTANTS = ("mixed", "common-only", "apart")
Shares = Sequence[Sequence[list[TokenizedExample]]]
"""The examples of each task, in each round."""


def contestant(name: str, backbone: Backbone, batch_size: int, shares: Shares) -> Callable[[int], Turn]:
    """One of CONTESTANTS; its turns take the number of the round."""
    train = nlora(backbone, batch_size)

    def turn(number: int) -> Turn:
        tasks = [TokenizedExamples.of(of_rounds[number]) for of_rounds in shares]
        if name != "apart":
            tasks = [TokenizedExamples(part for task in tasks for part in task.parts)]
        before = mock.patch("nlora.training.trainer.beginnings_of", return_value=())
        with before if name == "common-only" else nullcontext():
            turns = [train(task, number) for task in tasks]
        return Turn(sum(t.seconds for t in turns), sum(t.positions for t in turns))

    return turn


def measure_speed(options: argparse.Namespace) -> tuple[dict[str, list[Turn]], int]:
    """Everyone's turns, and the tokens of the examples of all rounds."""
    backbone = measure.read_model(options.model, options.dtype)
    rounds, size = options.rounds, options.batch_size
    pools = [
        measure.read_examples(backbone, argparse.Namespace(**vars(options), dataset=name))
        for name in options.datasets
    ]
    batches = [measure.typical_batches(pool, size, rounds * options.steps) for pool in pools]
    shares = [measure.of_rounds(of_task, rounds, by_length=True) for of_task in batches]
    turns = {name: contestant(name, backbone, size, shares) for name in CONTESTANTS}
    warm_up = contestant("mixed", backbone, size, [[of_task[0]] for of_task in batches])
    warm_up(0)
    tokens = sum(measure.tokens_of(e) for of_task in batches for batch in of_task for e in batch)
    return measure.interleave(turns, rounds), tokens


def figures(turns: dict[str, list[Turn]], examples: int, tokens: int) -> dict[str, Any]:
    """What --json writes of the contestants. examples: of a round."""
    made: dict[str, Any] = {}
    for name, some in turns.items():
        ratio = measure.ratios([t.seconds for t in turns["common-only"]], [t.seconds for t in some])
        rate = Spread.of([examples / t.seconds for t in some])
        made[name] = {
            "examples_per_second": asdict(rate),
            "times_as_fast_as_common_only": asdict(ratio),
            "positions_per_token": sum(t.positions for t in some) / tokens,
        }
    return made


def shown(made: dict[str, Any]) -> str:
    """The figures as a table."""
    header = ["contestant", "examples/s", "times common-only", "tokens per token"]
    rows = [
        [
            name,
            Spread(**f["examples_per_second"]),
            Spread(**f["times_as_fast_as_common_only"]),
            f"{f['positions_per_token']:.2f}",
        ]
        for name, f in made.items()
    ]
    return measure.table(header, rows)


@one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Measures, prints the table, writes JSON."""
    parser = measure.parser(__doc__)
    measure.model_options(parser)
    parser.add_argument(
        "--data", default="builtin", help="folder in the released layout, or builtin (default)"
    )
    parser.add_argument(
        "--datasets",
        nargs="+",
        default=["reuters", "newsgroups", "tweets"],
        help="(default: those of the demo)",
    )
    parser.add_argument("--batch-size", type=int, default=8, help="examples per step (default: 8)")
    parser.add_argument("--steps", type=int, default=2, help="steps of a turn for each task (default: 2)")
    parser.add_argument("--max-source-tokens", type=int, default=512, help="longest prompt (default: 512)")
    options = parser.parse_args(argv)
    measure.start(options)
    turns, tokens = measure_speed(options)
    examples = options.steps * options.batch_size * len(options.datasets)
    made = figures(turns, examples, tokens)
    measure.report("mixed", options, {"tokens": tokens, "contestants": made}, shown(made))


if __name__ == "__main__":
    main()
