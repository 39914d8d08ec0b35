"""Seconds of an optimizer step with several processes of one thread, and with one process of as many threads.

    python benchmarks/processes.py demo tasks=[tweets] train.max_samples=160 evaluate.max_samples=8

Source and overrides are those of `nlora run`. Both train in turn, in new folders; loading and scoring are left out.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import measure
from measure import Spread
from nlora.runs.summary import read_summary
from one_line import one_line_errors


def step_seconds(arguments: Sequence[str], processes: int, threads: int) -> float:
    """Mean over all steps of a run. threads: of each process."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "nlora", "run", *arguments, f"output_dir={folder}/run"]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        subprocess.run(
            [*command, "--processes", str(processes)],
            env=environment,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        states = Path(folder).glob("run/outputs/*/trainer_state.json")
        steps = sum(json.loads(state.read_text())["global_step"] for state in states)
        return float(sum(read_summary(f"{folder}/run").train_seconds) / steps)


@one_line_errors
def main() -> None:
    """Print both, and their ratio."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("arguments", nargs="+", help="a recipe or file, and overrides")
    parser.add_argument("--number", type=int, default=2, help="of processes, and of the other's threads")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    number = options.number
    found = measure.interleave(
        {
            "processes": lambda _: step_seconds(options.arguments, number, 1),
            "threads": lambda _: step_seconds(options.arguments, 1, number),
        },
        options.rounds,
    )
    print(f"step with {number} processes of 1 thread: {Spread.of(found['processes'])} s")
    print(f"step with 1 process of {number} threads: {Spread.of(found['threads'])} s")
    print(f"ratio: {measure.ratios(found['processes'], found['threads'])}")


if __name__ == "__main__":
    main()
