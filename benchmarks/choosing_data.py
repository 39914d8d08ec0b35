"""Writes the tasks of choosing_long.yaml as files: five built-in tasks, and three of the released benchmark.

    python benchmarks/choosing_data.py CL_Benchmark        # into runs/choosing/data

A run takes its tasks from the built-in ones or from the benchmark's folder, but files may come from anywhere. Each task
is sampled here once, so all runs train on the same examples and are scored on the same ones.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from nlora.config.schema import Config
from nlora.data.load import load_tasks
from nlora.data.splits import sample
from nlora.data.task import Example, Task
from one_line import one_line_errors

BUILTIN = ("reuters", "newsgroups", "tweets", "hobbies", "computers")
BENCHMARK = ("SST-2", "dbpedia", "agnews")
TRAIN, TEST = 192, 100
"""Examples of each task. The experiment trains on half of the first number, and chooses weights by the other half."""


def write(task: Task, folder: Path) -> None:
    """A task's files."""
    for split, examples, most in (("train", task.train, TRAIN), ("test", task.test, TEST)):
        _write_lines(folder / f"{task.name}-{split}.jsonl", sample(examples, most, 1))


def _write_lines(path: Path, examples: Sequence[Example]) -> None:
    lines = (json.dumps({"text": e.sentence, "label": e.label}, ensure_ascii=False) for e in examples)
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")


@one_line_errors
def main() -> None:
    """Writes all files, and prints the tasks for the sweep's file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("benchmark", help="the folder CL_Benchmark")
    parser.add_argument("--folder", type=Path, default=Path("runs/choosing/data"))
    options = parser.parse_args()
    tasks = [
        task
        for data, names in (("builtin", BUILTIN), (options.benchmark, BENCHMARK))
        for task in load_tasks(Config.model_validate({"data": data, "tasks": names}))
    ]
    options.folder.mkdir(parents=True, exist_ok=True)
    for task in tasks:
        write(task, options.folder)
        print(json.dumps({"name": task.name, "instruction": task.instruction, "labels": task.labels}))


if __name__ == "__main__":
    main()
