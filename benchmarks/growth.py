"""What a training step costs at the fifteenth task: earlier adapters folded into the weights, or kept beside them.

    python benchmarks/growth.py                     # smollm2, stages 1, 5, 10 and 15: about four minutes

At stage k there are k - 1 earlier adapters (random here). Both contestants train the same fresh one with nlora,
on the same batches; only what becomes of the earlier ones differs:

    nlora     they are added into the frozen weights; into those of bfloat16 they would vanish in part, so there they
              stay beside them, without dropout, and never cost more than one more layer
    beside    the released code: they are concatenated into one frozen adapter of rank r·(k-1), which runs
              beside each target layer in every step, with the same dropout on its input
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import measure
from measure import Spread
from nlora.config.schema import LoraOptions
from nlora.config.train_options import TrainOptions
from nlora.data.task import TokenizedExample
from nlora.methods.registry import build
from nlora.models.backbone import Backbone
from nlora.models.lora_adapter import LoraAdapter
from nlora.models.lora_factors import AdapterState, LoraFactors, stack
from nlora.models.target_modules import ModuleShape, target_modules
from nlora.runs.update_history import keep_updates
from nlora.training.peak_memory import peak_memory_bytes
from nlora.training.trainer import train
from one_line import one_line_errors

LORA = LoraOptions(r=8, alpha=32, dropout=0.1)
KINDS = ("nlora", "beside")


class UnmergedUpdates(nn.Linear):
    """A frozen layer with a frozen low-rank update beside it: x·Wᵀ + dropout(x)·Aᵀ·Bᵀ."""

    def __init__(self, layer: nn.Linear, earlier: LoraFactors, dropout: float) -> None:
        # No weight of its own is made: it is the given layer's.
        super().__init__(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
        self.weight, self.bias = layer.weight, layer.bias
        self.register_buffer("A", earlier.A.to(layer.weight.dtype))  # (R, in)
        self.register_buffer("B", (earlier.scaling * earlier.B).to(layer.weight.dtype))  # (out, R)
        self._dropout = dropout
        self.train(layer.training)

    def forward(self, x: Tensor) -> Tensor:
        rows = F.dropout(x, self._dropout, self.training)
        return super().forward(x) + F.linear(F.linear(rows, self.A), self.B)  # type: ignore[arg-type]


def random_states(modules: Sequence[ModuleShape], count: int) -> list[AdapterState]:
    """So many random adapters, too small to spoil the model."""
    draw = torch.Generator().manual_seed(1)

    def factor(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, generator=draw) * 1e-3

    return [
        {
            m.name: LoraFactors(factor(LORA.r, m.in_features), factor(m.out_features, LORA.r), 4.0)
            for m in modules
        }
        for _ in range(count)
    ]


@contextmanager
def at_stage(model: nn.Module, kind: str, stage: int) -> Iterator[None]:
    """The model as it is at a stage; afterwards as it was."""
    modules = target_modules(model, LORA)
    earlier = random_states(modules, stage - 1)
    if kind == "nlora":
        kept = keep_updates(model, [m.name for m in modules])
        kept.activate(earlier)
        try:
            yield
        finally:
            kept.deactivate()
        return
    layers: dict[str, Any] = {m.name: model.get_submodule(m.name) for m in modules} if earlier else {}
    for name, layer in layers.items():
        joint = stack([state.pop(name) for state in earlier])
        model.set_submodule(name, UnmergedUpdates(layer, joint, LORA.dropout))
    try:
        yield
    finally:
        for name, layer in layers.items():
            model.set_submodule(name, layer)


def seconds_per_step(
    backbone: Backbone, kind: str, stage: int, examples: Sequence[TokenizedExample], batch_size: int
) -> float:
    """One pass over the examples at a stage, divided by its steps."""
    model: Any = backbone.model
    with at_stage(model, kind, stage), tempfile.TemporaryDirectory() as folder:
        adapter = LoraAdapter.attach(model, LORA, seed=1)
        method = build("nlora", {"penalty": "update_l1"})
        try:
            # The same seed in every turn: the same batches at every stage.
            result = train(
                backbone,
                adapter,
                examples,
                TrainOptions(batch_size=batch_size),
                penalty=lambda: method.penalty(adapter),
                seed=1,
                folder=Path(folder),
            )
        finally:
            adapter.detach()
    return result.seconds / result.steps


def contestants(stages: Sequence[int]) -> list[tuple[str, int]]:
    """(kind, stage) of every contestant; without an earlier adapter both kinds are the same."""
    return [(kind, stage) for stage in stages for kind in KINDS if stage > 1 or kind == "nlora"]


def measure_seconds(options: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds per step of each contestant, one value a round."""
    backbone = measure.read_model(options.model, options.dtype)
    pool = measure.read_examples(backbone, options)
    examples = list(chain(*measure.typical_batches(pool, options.batch_size, options.steps)))

    def turn(kind: str, stage: int) -> Callable[[int], float]:
        return lambda number: seconds_per_step(backbone, kind, stage, examples, options.batch_size)

    turn("nlora", 1)(0)  # the first one is slower
    made = {f"{kind} {stage}": turn(kind, stage) for kind, stage in contestants(options.stages)}
    return measure.interleave(made, options.rounds)


def measure_memory(options: argparse.Namespace, argv: Sequence[str]) -> dict[str, int]:
    """Peak of memory of each contestant in a process of its own, model included."""
    peaks = {}
    for kind, stage in contestants(options.stages):
        print(f"memory: {kind} {stage}", file=sys.stderr, flush=True)
        figures = measure.alone(Path(__file__), [*argv, "--alone", kind, str(stage)])
        peaks[f"{kind} {stage}"] = figures["peak_memory_bytes"]
    return peaks


def train_alone(options: argparse.Namespace) -> dict[str, int]:
    """Trains one contestant on the longest batch; the process's peak of memory."""
    backbone = measure.read_model(options.model, options.dtype)
    batch = measure.longest_batch(measure.read_examples(backbone, options), options.batch_size)
    kind, stage = options.alone
    seconds_per_step(backbone, kind, int(stage), batch, options.batch_size)
    return {"peak_memory_bytes": peak_memory_bytes()}


def figures(seconds: dict[str, list[float]], peaks: dict[str, int]) -> dict[str, Any]:
    """What --json writes of the contestants; ratios are to the first one, the least stage."""
    first = next(iter(seconds))
    made: dict[str, Any] = {}
    for name, values in seconds.items():
        made[name] = {
            "seconds_per_step": values,
            "times_the_first": asdict(measure.ratios(values, seconds[first])),
        }
        if peaks:
            made[name]["peak_memory_bytes"] = peaks[name]
            made[name]["more_bytes_than_the_first"] = peaks[name] - peaks[first]
    return made


def shown(made: dict[str, Any]) -> str:
    """The figures as a table."""
    first = next(iter(made))
    header = [
        "earlier adapters, stage",
        "seconds per step",
        f"/ {first}",
        "peak memory",
        f"more than {first}",
    ]
    rows = []
    for name, f in made.items():
        memory = [measure.mib(f[k]) for k in ("peak_memory_bytes", "more_bytes_than_the_first") if k in f]
        spread = Spread.of(f["seconds_per_step"])
        rows.append([name, spread, Spread(**f["times_the_first"]), *(memory or ["-", "-"])])
    return measure.table(header, rows)


@one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Measures, prints the table, writes JSON."""
    parser = measure.parser(__doc__)
    measure.data_options(parser, steps=2)
    parser.add_argument("--stages", type=int, nargs="+", default=[1, 5, 10, 15], help="(default: 1 5 10 15)")
    parser.add_argument("--no-memory", action="store_true", help="leave the processes for memory out")
    parser.add_argument("--alone", nargs=2, help=argparse.SUPPRESS)
    argv = list(sys.argv[1:] if argv is None else argv)
    options = parser.parse_args(argv)
    measure.start(options)
    if options.alone:
        measure.write_json(options.json, train_alone(options))
        return
    peaks = {} if options.no_memory else measure_memory(options, argv)
    made = figures(measure_seconds(options), peaks)
    measure.report("growth", options, {"contestants": made}, shown(made))


if __name__ == "__main__":
    main()
