"""Small pieces that several tests build runs from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from nlora.api.learn import learn as learn_run
from nlora.config.load import load_config
from nlora.runs.events import Progress
from nlora.runs.summary import Summary

COLORS = ("red", "green", "blue")
ANIMALS = ("fox", "dog", "ox")
DESK_TASKS = {"tickets": ("billing", "network", "hardware"), "urgency": ("low", "high")}


def write_task(
    folder: Path, name: str, labels: Sequence[str], train: int = 16, test: int = 9
) -> dict[str, Any]:
    """A task in which the label word stands in the text; returns its entry of `tasks`."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", train), ("test", test)):
        rows = [
            {
                "sentence": f"the {labels[i % len(labels)]} thing number {i} of {split}",
                "label": labels[i % len(labels)],
            }
            for i in range(count)
        ]
        (folder / f"{name}-{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "name": name,
        "train": str(folder / f"{name}-train.jsonl"),
        "test": str(folder / f"{name}-test.jsonl"),
        "instruction": "Which word is in the text? Choose one from the option.",
        "labels": list(labels),
    }


def write_config(folder: Path, model: Path | str, **changes: Any) -> Path:
    """A run of two small tasks in `folder`/run; `changes` replace top-level keys."""
    values: dict[str, Any] = {
        "name": "small",
        "model": str(model),
        "tasks": [write_task(folder, "colors", COLORS), write_task(folder, "animals", ANIMALS)],
        "method": {"name": "nlora", "weight": 1e-3},
        "lora": {"r": 4, "alpha": 8, "dropout": 0.0},
        "train": {"epochs": 2, "batch_size": 8, "learning_rate": 5e-3},
        "evaluate": {"batch_size": 4},
        "seed": 3,
        "output_dir": str(folder / "run"),
    }
    values.update(changes)
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def desk_values(folder: Path, model: Path, **changes: Any) -> dict[str, Any]:
    """The configuration of a run of two tasks whose files lie in `folder`; paths relative to it, but the model's."""
    tasks = [write_task(folder / name, "x", labels) for name, labels in DESK_TASKS.items()]
    for name, task in zip(DESK_TASKS, tasks, strict=True):
        for split in ("train", "test"):
            shutil.move(task[split], folder / name / f"{split}.jsonl")
            task[split] = f"{name}/{split}.jsonl"
        task["name"] = name
    return {
        "name": "support",
        "model": str(model),
        "tasks": tasks,
        "method": {"name": "nlora", "weight": 1e-3},
        "lora": {"r": 4, "alpha": 8, "dropout": 0.0},
        "train": {"epochs": 2, "batch_size": 8, "learning_rate": 2e-2},
        "evaluate": {"batch_size": 4},
        "seed": 3,
    } | changes


def without_checksums(run: Path) -> None:
    """As in a run of an older version, whose files nobody compares with what was written."""
    for file in run.glob("outputs/*/checksums.json"):
        file.unlink()


def scores_of(tasks: Sequence[str], row: Sequence[float | None]) -> dict[str, float]:
    """A row of R by task, without the tasks that have no score."""
    return {task: score for task, score in zip(tasks, row, strict=True) if score is not None}


def learn(config: Path | str, *overrides: str) -> Summary:
    """The whole run, silently."""
    return learn_run(load_config(config, overrides), Progress())


def same_outcome(a: Summary, b: Summary) -> bool:
    """Whether two runs came to the same scores, whatever the time they took."""
    keys = (
        "tasks",
        "R",
        "zero_shot",
        "average_accuracy",
        "backward_transfer",
        "forgetting",
        "forward_transfer",
        "status",
    )
    return all(getattr(a, key) == getattr(b, key) for key in keys)
