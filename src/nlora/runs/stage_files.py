"""Small files that nlora alone reads: what a stage trained and was not scored for yet, and the scores before training.

keep_trained(folder, {"steps": 8}, facts["tickets"])     # all that was trained is in the folder
trained(folder)                                          # {"steps": 8}, also in a later process
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nlora.runs.atomic import disk_errors, flush_folder, write_json
from nlora.errors import RunError
from nlora.evaluation.continual_metrics import summarize
from nlora.runs.summary import Score
from nlora.runs.task_facts import TaskFacts

TRAINED_FILE = "trained.json"
"""Marks a stage that is trained, and not scored yet."""
ZERO_SHOT_FILE = "zero_shot.json"


def keep_trained(folder: Path, result: dict[str, Any], task: TaskFacts | None = None) -> None:
    """Mark that a stage's folder holds all that was trained.

    result: what its training took and came to. task: what its task was.
    """
    with disk_errors(folder):
        flush_folder(folder)
    known = None if task is None else task.model_dump(mode="json")
    write_json(folder / TRAINED_FILE, {"result": result, "task": known})


def trained(folder: Path) -> dict[str, Any] | None:
    """The result that `keep_trained` was given for this folder; None where the stage has still to be trained."""
    result: dict[str, Any] | None = _trained(folder).get("result")
    return result


def trained_task(folder: Path) -> TaskFacts | None:
    """What the task was then; None where nothing is trained, or it is not known."""
    known = _trained(folder).get("task")
    return None if known is None else TaskFacts.model_validate(known)


def write_zero_shot(folder: Path, row: Sequence[Score], facts: Mapping[str, TaskFacts]) -> None:
    """Keep the scores before any training in the run's folder."""
    summarize([row], zero_shot=row)  # refuses what is no row of percentages
    tasks = {name: task.model_dump(mode="json") for name, task in facts.items()}
    write_json(folder / ZERO_SHOT_FILE, {"zero_shot": list(row), "tasks": tasks})


def read_zero_shot(folder: Path) -> tuple[list[Score], dict[str, TaskFacts]] | None:
    """Those scores, and what the tasks were; None where they were not written (yet). Raises RunError when broken."""
    path = folder / ZERO_SHOT_FILE
    if not path.exists():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        row: list[Score] = values["zero_shot"]
        summarize([row], zero_shot=row)
        facts = {name: TaskFacts.model_validate(task) for name, task in values.get("tasks", {}).items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{path}: cannot be read; delete it to score the tasks again") from error
    return row, facts


def _trained(folder: Path) -> dict[str, Any]:
    try:
        values = json.loads((folder / TRAINED_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}
