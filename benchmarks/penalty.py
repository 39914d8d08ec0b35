"""What update_l1 costs, forward and backward, in time and in memory, beside plain autograd.

    python benchmarks/penalty.py                                       # everything, some minutes
    python benchmarks/penalty.py --modules 4096x4096 --ranks 8 --dtypes float32
    python benchmarks/penalty.py --modules smollm2 t5-large --json penalty.json

    plain      Σ_m |s·B_m·A_m|.sum() in the factors' own dtype, as one writes it: in bfloat16, that is what is summed
    single     nlora's update_l1, module by module; always in float32 or more
    grouped    nlora's update_l1_sum, as a training step calls it; always in float32 or more

A module is named by out x in; smollm2 and t5-large are all modules of the query and value projections of these
models. In a turn, each repeats its step for a while and reports the median; a ratio is taken within a round.

Memory is the peak of what torch allocates during one step beyond what was there before, gradients included, counted
from the profiler's records of every allocation. That is exact and the same on every run; the resident size of a process
also holds what the allocator keeps for later. What the BLAS library takes for itself is not in it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from measure import Spread, interleave, parser, ratios, report, start, table
from nlora.kernels.l1 import update_l1, update_l1_sum
from one_line import one_line_errors

Shape = tuple[int, int]
MODELS: dict[str, list[Shape]] = {
    "smollm2": [(576, 576)] * 30 + [(192, 576)] * 30,
    "t5-large": [(1024, 1024)] * 144,
}
SINGLE = ("576x576", "192x576", "1024x1024", "4096x4096", "11008x4096")
SCALING = 4.0


class LoraFactors:
    """Random factors of some modules, B not zero: a fresh adapter's zeros are no typical case."""

    def __init__(self, shapes: Sequence[Shape], r: int, dtype: torch.dtype) -> None:
        torch.manual_seed(0)
        self.As = [torch.randn(r, n_in).to(dtype).requires_grad_() for _, n_in in shapes]
        self.Bs = [torch.randn(out, r).to(dtype).requires_grad_() for out, _ in shapes]

    def clear(self) -> None:
        """Without gradients, as after an optimizer step."""
        for factor in (*self.As, *self.Bs):
            factor.grad = None


def plain(f: LoraFactors) -> Tensor:
    """As one writes it."""
    return torch.stack([(SCALING * (B @ A)).abs().sum() for A, B in zip(f.As, f.Bs, strict=True)]).sum()


def single(f: LoraFactors) -> Tensor:
    """Module by module."""
    return torch.stack([update_l1(A, B, SCALING) for A, B in zip(f.As, f.Bs, strict=True)]).sum()


def grouped(f: LoraFactors) -> Tensor:
    """All modules at once."""
    return update_l1_sum(f.As, f.Bs, [SCALING] * len(f.As))


def shapes_of(name: str) -> list[Shape]:
    """Of a model or of a single module. Raises ValueError for what is neither."""
    if name in MODELS:
        return MODELS[name]
    sizes = name.split("x")
    if len(sizes) != 2 or not all(size.isdecimal() and int(size) > 0 for size in sizes):
        raise argparse.ArgumentTypeError(f"'{name}' is neither OUTxIN nor one of {', '.join(MODELS)}")
    return [(int(sizes[0]), int(sizes[1]))]


def module_name(name: str) -> str:
    """The name itself, if shapes_of understands it."""
    shapes_of(name)
    return name


def seconds_of(
    penalty: Callable[[LoraFactors], Tensor], factors: LoraFactors, at_least: float, round_: int = 0
) -> float:
    """A turn: median of one pass forward and backward, over five passes or more in at_least seconds.

    round_: given by `interleave`; every round does the same.
    """
    taken: list[float] = []
    began = time.perf_counter()
    while len(taken) < 6 or time.perf_counter() - began < at_least:
        since = time.perf_counter()
        torch.autograd.backward(penalty(factors))
        taken.append(time.perf_counter() - since)
        factors.clear()
    return statistics.median(taken[1:])  # the first one wakes threads and fills caches


def extra_bytes(penalty: Callable[[LoraFactors], Tensor], factors: LoraFactors) -> int:
    """Peak of what torch has allocated during one forward and backward pass, beyond what it had before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as records:
        torch.autograd.backward(penalty(factors))
    factors.clear()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        records.export_chrome_trace(str(file))
        events = json.loads(file.read_text(encoding="utf-8"))["traceEvents"]
    changes = sorted((e["ts"], e["args"]["Bytes"]) for e in events if e["name"] == "[memory]")
    now = peak = 0
    for _, change in changes:
        now += change
        peak = max(peak, now)
    return peak


def measured(name: str, r: int, dtype: str, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of each contestant in each round, and its bytes."""
    shapes = shapes_of(name)
    factors = LoraFactors(shapes, r, getattr(torch, dtype))
    contestants = {"plain": plain, "single": single, "grouped": grouped}
    if len(shapes) == 1:
        del contestants["grouped"]  # the same as single
    turns = interleave(
        {key: partial(seconds_of, f, factors, options.seconds) for key, f in contestants.items()},
        options.rounds,
    )
    memory = {key: extra_bytes(f, factors) for key, f in contestants.items()}
    return {"modules": name, "r": r, "dtype": dtype, "seconds": turns, "extra_bytes": memory}


def lines_of(figures: dict[str, Any]) -> list[list[object]]:
    """The rows of the table of one case: milliseconds, MiB, and both against plain."""
    seconds, memory = figures["seconds"], figures["extra_bytes"]
    rows: list[list[object]] = []
    for key, turns in seconds.items():
        faster = "" if key == "plain" else ratios(seconds["plain"], turns)
        share = "" if key == "plain" else f"{100 * memory[key] / memory['plain']:.1f} %"
        case = figures["modules"], figures["r"], figures["dtype"]
        milliseconds = Spread.of([1000 * t for t in turns])
        rows.append([*case, key, milliseconds, faster, f"{memory[key] / 2**20:.1f}", share])
    return rows


@one_line_errors
def main(arguments: Sequence[str] | None = None) -> None:
    """A row for each case and each way to compute it."""
    options_of = parser(__doc__)
    options_of.add_argument(
        "--modules", nargs="+", type=module_name, default=[*SINGLE, *MODELS],
        help=f"OUTxIN or {', '.join(MODELS)} (default: {' '.join([*SINGLE, *MODELS])})",
    )  # fmt: skip
    options_of.add_argument("--ranks", nargs="+", type=int, default=[8, 64])
    options_of.add_argument(
        "--dtypes", nargs="+", choices=["float32", "bfloat16"], default=["float32", "bfloat16"]
    )
    options_of.add_argument(
        "--seconds", type=float, default=0.3, help="least length of a turn (default: 0.3)"
    )
    options = options_of.parse_args(arguments)
    start(options)
    cases = [
        measured(name, r, dtype, options)
        for name in options.modules
        for r in options.ranks
        for dtype in options.dtypes
    ]
    header = ["modules", "r", "factors", "how", "ms", "times faster", "extra MiB", "of plain"]
    rows = [row for case in cases for row in lines_of(case)]
    report("penalty", options, {"cases": cases}, table(header, rows))


if __name__ == "__main__":
    main()
