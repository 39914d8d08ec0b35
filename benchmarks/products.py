"""Products of bfloat16 matrices: torch's own, and nlora's for processors without instructions for them.

    python benchmarks/products.py                    # products, some minutes
    python benchmarks/products.py --steps 3          # also steps of training
    python benchmarks/products.py --blocks           # also nlora's with blocks of other sizes

A product is named by rows x in, in x out. "transposed": the second matrix is a linear layer's weight, as forward; "as
stored": as in the gradient. A cell is the time as a multiple of that of float32, taken within a round. Where a
processor has the instructions, nlora leaves the products to torch; here its own are measured there, too.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.library import _scoped_library

import measure
from floor import Turn, seconds_per_step
from nlora.kernels import bfloat16_products
from one_line import one_line_errors

SIZES = [
    (rows, n_in, n_out)
    for n_in, n_out, counts in (
        (576, 1536, (1, 8, 64, 512)),
        (1536, 576, (512,)),
        (576, 49152, (1, 8)),  # SmolLM2's head
        (4096, 4096, (1, 8, 256)),
    )
    for rows in counts
]
BLOCKS = [2**power for power in range(18, 26)]
"""Bytes of a widened block."""
SECONDS = 0.3
"""How long a product is repeated in a turn."""
WAYS = ("torch's own", "nlora")


@contextmanager
def ours() -> Iterator[None]:
    """A block with nlora's products, on any processor."""
    with _scoped_library("aten", "IMPL") as library:
        bfloat16_products.register(library)
        yield


def seconds(product: Callable[[], Tensor]) -> float:
    """Mean of one call."""
    product()
    calls, begin = 0, time.perf_counter()
    while (spent := time.perf_counter() - begin) < SECONDS:
        product()
        calls += 1
    return spent / calls


def of_size(size: tuple[int, int, int], transposed: bool, blocks: Sequence[int]) -> dict[str, Any]:
    """Contestants of one product."""
    rows, n_in, n_out = size
    left, right = torch.randn(rows, n_in), torch.randn(n_out, n_in).t()
    right = right if transposed else right.contiguous()
    narrow = partial(torch.mm, left.bfloat16(), right.bfloat16())

    def in_ours(_: int) -> float:
        with ours():
            return seconds(narrow)

    def in_blocks(of_bytes: int, _: int) -> float:
        kept, bfloat16_products.BLOCK_NUMBERS = bfloat16_products.BLOCK_NUMBERS, of_bytes // 4
        try:
            return in_ours(0)
        finally:
            bfloat16_products.BLOCK_NUMBERS = kept

    return {
        "float32": lambda _: seconds(partial(torch.mm, left, right)),
        "torch's own": lambda _: seconds(narrow),
        "nlora": in_ours,
        **{f"{b / 2**20:g} MiB": partial(in_blocks, b) for b in blocks},
    }


def products(options: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """Seconds of every round."""
    return {
        f"{rows} x {n_in}, {n_in} x {n_out}, {'transposed' if transposed else 'as stored'}": measure.interleave(
            of_size((rows, n_in, n_out), transposed, BLOCKS if options.blocks else ()), options.rounds
        )
        for rows, n_in, n_out in SIZES
        for transposed in (True, False)
    }


def steps(options: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of a training step, all but the first."""
    turns = {}
    for name in ("float32", "bfloat16"):
        backbone = measure.read_model(options.model)
        backbone.model.to(
            getattr(torch, name)
        )  # loaded in bfloat16, it would change torch's products for good
        pool = measure.read_examples(backbone, options)
        examples = list(chain(*measure.typical_batches(pool, options.batch_size, options.steps)))
        turns[name] = Turn(backbone, examples, options.batch_size)

    def turn(name: str, within: Callable[[], Any], _: int) -> float:
        with within():
            return seconds_per_step(turns[name])

    return measure.interleave(
        {
            "float32": partial(turn, "float32", nullcontext),
            "torch's own": partial(turn, "bfloat16", nullcontext),
            "nlora": partial(turn, "bfloat16", ours),
        },
        options.rounds,
    )


def table(measured: dict[str, dict[str, list[float]]]) -> str:
    """Milliseconds of float32, then each way as a multiple of it."""
    ways = [way for way in next(iter(measured.values())) if way != "float32"]
    rows = [
        [
            name,
            measure.Spread.of([1000 * s for s in of_way["float32"]]),
            *(measure.ratios(of_way[way], of_way["float32"]) for way in ways),
        ]
        for name, of_way in measured.items()
    ]
    return measure.table(["", "float32, ms", *(f"bfloat16, {way}" for way in ways)], rows)


@one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Measures, prints the tables, writes JSON."""
    parser = measure.parser(__doc__)
    measure.data_options(parser, steps=0)
    parser.set_defaults(rounds=3)
    parser.add_argument("--blocks", action="store_true", help="also nlora's with blocks of other sizes")
    options = parser.parse_args(argv)
    if options.steps == 1:
        parser.error("--steps: the first step is not counted, so it takes two or more")
    measure.start(options)
    figures: dict[str, Any] = {"products": products(options)}
    if options.steps:
        figures["steps"] = {"a step of training": steps(options)}
    measure.report("products", options, figures, *map(table, figures.values()))


if __name__ == "__main__":
    main()
