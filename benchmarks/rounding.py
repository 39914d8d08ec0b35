"""What bfloat16 weights would leave of a run's updates, folded into them, and what is left of them beside the weights.

    python benchmarks/rounding.py runs/demo/nlora runs/demo/inclora

Of each run, for the update of each of its tasks (median, least and most): the share of its entries that are gone
without a trace, because W0 + ΔW rounds to W0, and how far what is left of it is from it, ‖ΔW' − ΔW‖ / ‖ΔW‖. Beside the
weights, an update's factors are rounded, not its sum with W0.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import measure
from measure import Spread
from nlora.errors import RunError
from nlora.models.lora_factors import LoraFactors, load_factors
from nlora.models.target_modules import linear_layer
from nlora.runs.summary import read_summary
from one_line import one_line_errors

HEADER = ("run", "entries lost, merged", "error, merged", "error, unmerged")


def folded(weight: Tensor, f: LoraFactors) -> Tensor:
    """What is left of an update (out, in) in a sum that is rounded to bfloat16, as the weight is."""
    return (weight + f.scaling * f.B @ f.A).bfloat16().float() - weight


def beside(f: LoraFactors) -> Tensor:
    """What is left of an update (out, in) whose factors are rounded to bfloat16."""
    return (f.scaling * f.B).bfloat16().float() @ f.A.bfloat16().float()


def of_run(folder: Path, model: Any) -> dict[str, list[float]]:
    """Of each task of a run: the share of entries lost, and the two errors. Raises RunError without adapters."""
    made: dict[str, list[float]] = {"lost": [], "folded": [], "beside": []}
    adapters = sorted(folder.glob("outputs/*/adapter"), key=lambda path: int(path.parent.name.split("-")[0]))
    if not adapters:
        raise RunError(f"{folder}: no adapters in it; give runs whose tasks have one each")
    for adapter in adapters:
        entries = lost = 0
        squares = {"update": 0.0, "folded": 0.0, "beside": 0.0}
        for name, f in load_factors(adapter).items():
            weight = linear_layer(model, name).weight.detach().bfloat16().float()  # type: ignore[operator]
            update, left = f.scaling * f.B @ f.A, folded(weight, f)
            entries += update.numel()
            lost += int(((left == 0) & (update != 0)).sum())
            squares["update"] += float(update.square().sum())
            squares["folded"] += float((left - update).square().sum())
            squares["beside"] += float((beside(f) - update).square().sum())
        made["lost"].append(lost / entries)
        for kind in ("folded", "beside"):
            made[kind].append((squares[kind] / squares["update"]) ** 0.5)
    return made


@one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Measures, prints the table, writes JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", type=Path, help="folders of runs with their adapters")
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")
    options = parser.parse_args(argv)
    made: dict[str, dict[str, list[float]]] = {}
    rows = []
    with torch.no_grad():
        for folder in options.folders:
            of = made[str(folder)] = of_run(folder, measure.read_model(read_summary(folder).model).model)
            cells = [Spread.of(of[kind]) for kind in ("lost", "folded", "beside")]
            rows.append([str(folder), *cells])
    measure.report("rounding", options, {"runs": made}, measure.table(HEADER, rows))


if __name__ == "__main__":
    main()
