"""What the weight of the penalty does on the demo's tasks: average accuracy and backward transfer, over seeds.

    python benchmarks/weights.py                                         # the grid, on validation examples
    python benchmarks/weights.py --split test --weights 0 3e-5           # the demo's own figures

The default weight was chosen with the first command: it scores on examples split off from train, never on test.
Weight 0 is incremental LoRA, bit for bit. Each run is one `nlora run demo` with overrides in a folder of its own, so a
stopped benchmark goes on where it was. `--jobs 2` runs two at a time with one thread each, which takes about as
long for both as one run with two threads.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from one_line import one_line_errors


def run(folder: Path, split: str, weight: float, seed: int, jobs: int, more: list[str]) -> dict[str, Any]:
    """One run of the demo; returns its summary."""
    target = folder / f"{split}-{weight:g}-{seed}" / "-".join(more).replace("/", "_")
    command = [sys.executable, "-m", "nlora", "run", "demo", f"output_dir={target}", f"seed={seed}"]
    command += [f"method.weight={weight}", f"evaluate.split={split}", *more]
    threads = {"OMP_NUM_THREADS": "1"} if jobs > 1 else {}
    subprocess.run(command, check=True, env={**os.environ, **threads}, stdout=subprocess.DEVNULL)
    summary: dict[str, Any] = json.loads((target / "summary.json").read_text())
    return summary


def described(values: list[float]) -> str:
    """Mean and spread (smallest to largest) over the seeds."""
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{statistics.mean(values):.1f} ({min(values):.1f} to {max(values):.1f})"


@one_line_errors
def main() -> None:
    """Runs the grid and prints one row per weight."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--split", choices=["validation", "test"], default="validation")
    parser.add_argument("--weights", type=float, nargs="+", default=[0.0, 1e-5, 3e-5, 1e-4])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; more than one: one thread each")
    parser.add_argument("--folder", type=Path, default=Path("runs/weights"))
    parser.add_argument("more", nargs="*", help="further overrides, as lora.r=4")
    options = parser.parse_args()
    grid = [(weight, seed) for seed in options.seeds for weight in options.weights]
    with ThreadPoolExecutor(options.jobs) as pool:
        summaries = pool.map(
            lambda point: run(options.folder, options.split, point[0], point[1], options.jobs, options.more),
            grid,
        )
        results: dict[float, list[dict[str, Any]]] = {}
        for (weight, seed), summary in zip(grid, summaries, strict=True):
            results.setdefault(weight, []).append(summary)
            print(
                f"weight {weight:g} seed {seed}: {summary['average_accuracy']:.1f} "
                f"{summary['backward_transfer']:+.1f} R {summary['R']}",
                file=sys.stderr,
                flush=True,
            )
    print(f"split: {options.split}; seeds: {options.seeds}; {platform.processor() or platform.machine()}")
    print("| weight | average accuracy | backward transfer | just learned | training seconds |")
    print("| --- | --- | --- | --- | --- |")
    for weight, runs in sorted(results.items()):
        learned = [statistics.mean(r["R"][i][i] for i in range(len(r["tasks"]))) for r in runs]
        columns = [
            described([r["average_accuracy"] for r in runs]),
            described([r["backward_transfer"] for r in runs]),
            described(learned),
            described([sum(r["train_seconds"]) for r in runs]),
        ]
        print(f"| {weight:g} | {' | '.join(columns)} |")


if __name__ == "__main__":
    main()
