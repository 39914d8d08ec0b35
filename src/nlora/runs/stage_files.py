"""The mark of a stage that is trained but not scored yet, the order of stages, and the zero-shot scores."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field

from nlora.errors import RunError, to_repair
from nlora.models.processes import by_main
from nlora.runs.atomic import disk_errors, flush_folder, write_json
from nlora.runs.checksums import write_checksums
from nlora.runs.layout import TRAINED_FILE, unfinished
from nlora.runs.task_records import TaskRecord

ZERO_SHOT_FILE = "zero_shot.json"


@by_main
def keep_trained(
    folder: Path, result: dict[str, Any], task: TaskRecord | None = None, after: str | None = None
) -> None:
    """Mark a stage's folder as completely trained.

    result: of the training (time, loss, ...), as JSON values. task: the record of its task. after: see `Checksums`.
    """
    with disk_errors(folder):
        flush_folder(folder)
        write_checksums(folder, after)
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


def refuse_gap(folders: Sequence[Path], repaired: Collection[int] = ()) -> None:
    """Raise RunError if a stage is missing although a later one is committed.

    folders: of all stages, in order. repaired: stages, from 1, that may be missing.
    """
    # The last one comes first, because another process may commit stages meanwhile.
    last = max((stage for stage, folder in enumerate(folders, start=1) if folder.is_dir()), default=0)
    for stage, folder in enumerate(folders[:last], start=1):
        if stage not in repaired and not folder.is_dir():
            again = "scored" if trained(unfinished(folder)) else "trained"
            raise RunError(f"{folder}: is missing, but later stages exist; {to_repair(again)}")


class _ZeroShot(BaseModel):
    """The contents of zero_shot.json."""

    scores: dict[str, Annotated[float, Field(ge=0, le=100)]]
    tasks: dict[str, TaskRecord] = {}


def write_zero_shot(folder: Path, scores: Mapping[str, float], records: Mapping[str, TaskRecord]) -> None:
    """Save the scores before any training in the run's folder, in percent. Raises ValueError if they are not."""
    values = _ZeroShot(scores=dict(scores), tasks=dict(records))
    write_json(folder / ZERO_SHOT_FILE, values.model_dump(mode="json"))


def read_zero_shot(folder: Path) -> tuple[dict[str, float], dict[str, TaskRecord]] | None:
    """The zero-shot scores and the records of the tasks; None if not written (yet). Raises RunError if broken."""
    path = folder / ZERO_SHOT_FILE
    if not path.exists():
        return None
    try:
        values = _ZeroShot.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: broken; delete it to score the tasks again") from error
    return values.scores, values.tasks


def _trained(folder: Path) -> dict[str, Any]:
    try:
        values = json.loads((folder / TRAINED_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}
