"""Two internal files of a run: the mark of a stage that is trained but not scored yet, and the zero-shot scores."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nlora.errors import RunError
from nlora.evaluation.continual_metrics import summarize
from nlora.runs.atomic import disk_errors, flush_folder, write_json
from nlora.runs.summary import Score
from nlora.runs.task_records import TaskRecord

TRAINED_FILE = "trained.json"
"""Marks a stage that is trained but not scored yet."""
ZERO_SHOT_FILE = "zero_shot.json"


def keep_trained(folder: Path, result: dict[str, Any], task: TaskRecord | None = None) -> None:
    """Mark a stage's folder as completely trained.

    result: of the training (time, loss, ...), as JSON values. task: the record of its task.
    """
    with disk_errors(folder):
        flush_folder(folder)
    known = None if task is None else task.model_dump(mode="json")
    write_json(folder / TRAINED_FILE, {"result": result, "task": known})


def trained(folder: Path) -> dict[str, Any] | None:
    """The result that `keep_trained` saved in this folder; None if the stage still has to be trained."""
    result: dict[str, Any] | None = _trained(folder).get("result")
    return result


def trained_task(folder: Path) -> TaskRecord | None:
    """The record of the task it was trained on; None if nothing is trained or it is unknown."""
    known = _trained(folder).get("task")
    return None if known is None else TaskRecord.model_validate(known)


def write_zero_shot(folder: Path, row: Sequence[Score], records: Mapping[str, TaskRecord]) -> None:
    """Save the scores before any training in the run's folder. Raises ValueError for a row that is not percentages."""
    summarize([row], zero_shot=row)
    tasks = {name: task.model_dump(mode="json") for name, task in records.items()}
    write_json(folder / ZERO_SHOT_FILE, {"zero_shot": list(row), "tasks": tasks})


def read_zero_shot(folder: Path) -> tuple[list[Score], dict[str, TaskRecord]] | None:
    """The zero-shot scores and the records of the tasks; None if not written (yet). Raises RunError if broken."""
    path = folder / ZERO_SHOT_FILE
    if not path.exists():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        row: list[Score] = values["zero_shot"]
        summarize([row], zero_shot=row)
        records = {name: TaskRecord.model_validate(task) for name, task in values.get("tasks", {}).items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{path}: broken; delete it to score the tasks again") from error
    return row, records


def _trained(folder: Path) -> dict[str, Any]:
    try:
        values = json.loads((folder / TRAINED_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}
