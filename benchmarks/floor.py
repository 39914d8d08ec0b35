"""How near a training step of nlora comes to the least time in which this machine could do its matrix products.

    python benchmarks/floor.py                                  # smollm2: about one minute
    python benchmarks/floor.py --model t5-base-shape

Three tables:

1. the rate of matrix products that this machine reaches, in float32 and bfloat16, at the model's own sizes and for
   large squares, which are as fast as it gets;
2. the share of that rate that training reaches: floating-point operations of the matrix products of a step
   (counted by `torch.utils.flop_counter`'s formulas, attention included) / seconds of the step / rate;
3. where the time of a step goes, by kind of operation (torch.profiler, each operation's own time).

Counted and measured are the same steps: from the end of the first to the end of the last of a turn. Counted are the
operations that nlora's step does, which are fewer than a plain step's; so a share can fall when work is spared.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop, sdpa_flop

import measure
from measure import Spread
from nlora.config.schema import LoraOptions
from nlora.config.train_options import TrainOptions
from nlora.data.task import TokenizedExample
from nlora.kernels.streams import Streams
from nlora.methods.registry import build
from nlora.models.backbone import Backbone
from nlora.models.lora_adapter import LoraAdapter
from nlora.training.trainer import train
from one_line import one_line_errors

LORA = LoraOptions(r=8, alpha=32, dropout=0.1)
SQUARE = 2048
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
DRAW = "random numbers"
_aten = torch.ops.aten
# What torch's own list leaves out: sums made inside a product, and the attention kernels of the CPU.
FORMULAS: dict[Any, Any] = {
    **flop_registry,
    _aten.addmm_: flop_registry[_aten.addmm],
    _aten._scaled_dot_product_flash_attention_for_cpu: sdpa_flop,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: sdpa_backward_flop,
}
# What an operation's name begins with (behind "aten::") -> its kind; the first that fits.
KINDS = {
    "matrix products": ("mm", "addmm", "bmm", "baddbmm", "mkldnn", "linear", "matmul"),
    "attention": ("_scaled_dot_product",),
    "optimizer and clipping": ("_fused_adam", "_foreach", "Optimizer", "linalg_vector_norm", "_amp"),
    "random numbers of dropout": (DRAW, "bernoulli", "native_dropout", "dropout", "rand", "uniform_"),
    "copies": ("copy_", "clone", "cat", "_to_copy", "contiguous", "index", "repeat", "fill_", "zero_", "slice"),
    "elementwise": (
        "add", "sub", "mul", "div", "neg", "silu", "relu", "threshold", "gelu", "pow", "sqrt", "rsqrt", "mean",
        "sum", "sign", "abs", "cos", "sin", "where", "masked_fill",
        "_softmax", "_log_softmax", "nll_loss", "native_layer_norm", "_fused_rms_norm",
    ),
}  # fmt: skip


class Flops(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sums up the floating-point operations of every matrix product, by the operation's name."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.by_operation: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = FORMULAS.get(func.overloadpacket)
        if formula is not None:
            self.by_operation[func.overloadpacket.__name__] += formula(*args, **(kwargs or {}), out_val=out)
        return out


class Turn:
    """One training of the examples; `after(step)` is called at the end of each step."""

    def __init__(self, backbone: Backbone, examples: Sequence[TokenizedExample], batch_size: int) -> None:
        self._backbone, self._examples = backbone, examples
        self._batch_size = batch_size
        self.steps = len(examples) // batch_size

    def __call__(
        self, after: Callable[[int], None], within: AbstractContextManager[Any] | None = None
    ) -> None:
        model: Any = self._backbone.model
        adapter = LoraAdapter.attach(model, LORA, seed=1)
        method = build("nlora", {"penalty": "update_l1"})
        try:
            with tempfile.TemporaryDirectory() as folder, within or nullcontext():
                # The same seed in every turn: the same batches in the same order.
                train(
                    self._backbone,
                    adapter,
                    self._examples,
                    TrainOptions(batch_size=self._batch_size),
                    penalty=lambda: method.penalty(adapter),
                    seed=1,
                    folder=Path(folder),
                    on_step=after,
                )
        finally:
            adapter.detach()


def flops_per_step(turn: Turn) -> dict[str, float]:
    """Operations of the matrix products of a step, by the operation's name; all steps but the first."""
    flops, first = Flops(), Counter[str]()

    def after(step: int) -> None:
        if step == 1:
            first.update(flops.by_operation)

    turn(after, flops)
    return {name: (n - first[name]) / (turn.steps - 1) for name, n in flops.by_operation.items()}


def seconds_per_step(turn: Turn) -> float:
    """Mean of all steps but the first."""
    times: list[float] = []
    turn(lambda step: times.append(time.perf_counter()))
    return (times[-1] - times[0]) / (turn.steps - 1)


def profiled(turn: Turn) -> dict[str, float]:
    """Seconds of a step by kind of operation, and what is spent outside of all of them."""
    recorder = profile(activities=[ProfilerActivity.CPU])
    begin = end = 0.0

    def after(step: int) -> None:
        nonlocal begin, end
        if step == 1:
            recorder.start()
            begin = time.perf_counter()
        elif step == turn.steps:
            end = time.perf_counter()
            recorder.stop()

    # They are drawn by numpy, which the profiler does not see.
    recorded = record_function(DRAW)(Streams.draw)
    turn(after, mock.patch.object(Streams, "draw", recorded))
    seconds = {e.key: e.self_cpu_time_total / 1e6 / (turn.steps - 1) for e in recorder.key_averages()}
    return by_kind(seconds, (end - begin) / (turn.steps - 1))


def by_kind(seconds: Mapping[str, float], whole: float) -> dict[str, float]:
    """Sums per kind of KINDS, then "other operations", then what is left of the whole: Python."""
    kinds = dict.fromkeys([*KINDS, "other operations"], 0.0)
    for name, value in seconds.items():
        kinds[kind_of(name)] += value
    return {**kinds, "outside of operations": max(0.0, whole - sum(kinds.values()))}


def kind_of(operation: str) -> str:
    """Which of KINDS an operation of the profiler belongs to."""
    name = operation.removeprefix("aten::")
    return next((kind for kind, starts in KINDS.items() if name.startswith(starts)), "other operations")


def sizes(backbone: Backbone, tokens: int) -> dict[str, tuple[int, int, int]]:
    """(rows, in, out) of the products of a step: each kind of the model's layers, and a large square."""
    found = {}
    for name, module in backbone.model.named_modules():
        if isinstance(module, torch.nn.Linear) and "lora" not in name:
            n_in, n_out = module.in_features, module.out_features
            if n_out < 20_000:  # the head runs on few positions
                found[f"{tokens} x {n_in} by {n_in} x {n_out}"] = (tokens, n_in, n_out)
    found[f"{SQUARE} x {SQUARE} squares"] = (SQUARE, SQUARE, SQUARE)
    return found


def rate(size: tuple[int, int, int], dtype: torch.dtype, tries: int = 10) -> float:
    """Operations per second of x·Wᵀ, as a linear layer does it: the best of some tries."""
    rows, n_in, n_out = size
    x, weight = torch.randn(rows, n_in).to(dtype), torch.randn(n_out, n_in).to(dtype)
    best = float("inf")
    for _ in range(tries):
        begin = time.perf_counter()
        torch.nn.functional.linear(x, weight)
        best = min(best, time.perf_counter() - begin)
    return 2 * rows * n_in * n_out / best


def measure_all(options: argparse.Namespace) -> dict[str, Any]:
    """What --json writes: rates and seconds of every round, operations, shares and the profile."""
    backbone = measure.read_model(options.model, options.dtype)
    pool = measure.read_examples(backbone, options)
    examples = list(chain(*measure.typical_batches(pool, options.batch_size, options.steps)))
    turn = Turn(backbone, examples, options.batch_size)

    def of_product(size: tuple[int, int, int], dtype: torch.dtype) -> Callable[[int], float]:
        return lambda number: rate(size, dtype)

    with measure.Positions(backbone.model) as positions:
        turn(lambda step: None)
    # Rates and steps take turns, as the machine's speed changes.
    contestants: dict[str, Callable[[int], float]] = {"step": lambda number: seconds_per_step(turn)}
    for name, size in sizes(backbone, positions.count // turn.steps).items():
        for label, dtype in DTYPES.items():
            contestants[f"{name}, {label}"] = of_product(size, dtype)
    measured = measure.interleave(contestants, options.rounds)
    flops, seconds = flops_per_step(turn), measured.pop("step")
    reached = [sum(flops.values()) / s for s in seconds]
    shares = {n: measure.ratios(reached, r) for n, r in measured.items() if n.endswith(options.dtype)}
    return {
        "rates": measured,
        "seconds_per_step": seconds,
        "flops_per_step": flops,
        "flops_per_second": reached,
        "share_of_rate": {name: asdict(share) for name, share in shares.items()},
        "profile_seconds": profiled(turn),
    }


def tables(figures: dict[str, Any]) -> list[str]:
    """The figures as three tables."""
    rates: dict[str, list[object]] = {}
    for key, values in figures["rates"].items():
        rates.setdefault(key.rpartition(", ")[0], []).append(_giga(values))
    flops = sum(figures["flops_per_step"].values())
    step: list[list[object]] = [
        ["seconds of a step", Spread.of(figures["seconds_per_step"])],
        ["GFLOP of its matrix products", f"{flops / 1e9:.0f}"],
        ["GFLOP/s", _giga(figures["flops_per_second"])],
        *([f"/ rate of {name}", Spread(**share)] for name, share in figures["share_of_rate"].items()),
    ]
    kinds = figures["profile_seconds"]
    whole = sum(kinds.values())
    return [
        measure.table(
            ["matrix product", *(f"{label}, GFLOP/s" for label in DTYPES)],
            [[name, *values] for name, values in rates.items()],
        ),
        measure.table(["training", ""], step),
        measure.table(
            ["of a step, profiled", "seconds", "share"],
            [[kind, f"{value:.3f}", f"{value / whole:.0%}"] for kind, value in kinds.items()],
        ),
    ]


def _giga(values: Sequence[float]) -> Spread:
    return Spread.of([value / 1e9 for value in values])


@one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Measures, prints the tables, writes JSON."""
    parser = measure.parser(__doc__)
    measure.data_options(parser, steps=4)
    options = parser.parse_args(argv)
    if options.steps < 2:
        parser.error("--steps: the first step is not counted, so it takes two or more")
    measure.start(options)
    figures = measure_all(options)
    measure.report("floor", options, figures, *tables(figures))


if __name__ == "__main__":
    main()
