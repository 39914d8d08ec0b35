"""Ship or not: which tasks lost too much between two models of a run, or of two runs.

The answers are in the runs' own files, so nothing is loaded or scored again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nlora.analysis.answer_changes import Answers, TaskChanges, task_changes
from nlora.errors import InputErrors, Problem
from nlora.evaluation.paired_test import holm
from nlora.runs.answers import read_answers
from nlora.runs.checkpoint import Checkpoint, read_stage
from nlora.runs.layout import PREDICTIONS_FILE
from nlora.runs.task_records import TaskRecord, differences

SCHEMA = 1
DEFAULT_MAX_DROP = 2.0
"""Percentage points."""


@dataclass(frozen=True, slots=True)
class TaskVerdict:
    """One task: what changed, since when, and whether that is allowed.

    p_value: of the paired test, corrected for the number of tasks.
    """

    changes: TaskChanges
    since: str
    p_value: float
    is_allowed: bool


@dataclass(frozen=True, slots=True)
class Gate:
    """The verdict on a model.

    model: which one, in words. max_drop: percentage points that a task may lose.
    alpha: a drop counts only if its corrected p-value is below this; None: every drop counts.
    """

    model: str
    max_drop: float
    alpha: float | None
    tasks: tuple[TaskVerdict, ...]

    @property
    def passed(self) -> bool:
        """Whether no task lost more than is allowed."""
        return all(task.is_allowed for task in self.tasks)

    def values(self) -> dict[str, Any]:
        """What `nlora gate --json` prints."""
        return {
            "schema": SCHEMA,
            "model": self.model,
            "max_drop": self.max_drop,
            "alpha": self.alpha,
            "passed": self.passed,
            "tasks": [
                {
                    **asdict(verdict.changes),
                    "drop": verdict.changes.drop,
                    "since": verdict.since,
                    "p_value": verdict.changes.changes.p_value,
                    "p_value_corrected": verdict.p_value,
                    "allowed": verdict.is_allowed,
                }
                for verdict in self.tasks
            ],
        }


def gate(
    run: Path,
    *,
    stage: int | None = None,
    against: Path | None = None,
    against_stage: int | None = None,
    max_drop: float = DEFAULT_MAX_DROP,
    alpha: float | None = None,
) -> Gate:
    """Compare the model after a stage of a run with an earlier or another one, task by task.

    stage: from 1; None: the last committed one. against: another run; None: the run itself.
    against_stage: of that run; None: its last committed stage, or, within one run, for each task the stage that learned
        it. max_drop, alpha: see `Gate`.

    Raises InputErrors if there is nothing to compare, or the two were not scored on the same examples.
    """
    if not (max_drop >= 0 and math.isfinite(max_drop)):
        raise InputErrors(
            [Problem("--max-drop", f"must be a number of percentage points >= 0, not {max_drop:g}")]
        )
    if alpha is not None and not 0 < alpha < 1:
        raise InputErrors([Problem("--alpha", f"must be between 0 and 1, not {alpha:g}")])
    after = read_stage(run, stage)
    if against is not None or against_stage is not None:
        before = read_stage(against or run, against_stage)
        pairs = {task: before for task in _scored(before) if task in _scored(after)}
    else:
        pairs = _just_learned(after)
    if not pairs:
        raise InputErrors([Problem(str(run), _nothing_to_compare(after, against))])
    compared = _compared(after, pairs)
    corrected = holm([changes.changes.p_value for changes in compared])
    return Gate(
        model=f"{after.config.name}, {after.name}",
        max_drop=max_drop,
        alpha=alpha,
        tasks=tuple(
            TaskVerdict(
                changes,
                since=_since(pairs[changes.task], after),
                p_value=p_value,
                is_allowed=changes.drop <= max_drop or (alpha is not None and p_value >= alpha),
            )
            for changes, p_value in zip(compared, corrected, strict=True)
        ),
    )


def _just_learned(after: Checkpoint) -> dict[str, Checkpoint]:
    """Each task learned before the stage, with the stage that learned it."""
    found = {}
    for earlier in range(1, after.stage):
        task = after.config.tasks[earlier - 1].name
        if not after.run.stage_record(earlier).is_skipped and task in _scored(after):
            found[task] = read_stage(after.run.folder, earlier)
    return found


def _scored(point: Checkpoint) -> Mapping[str, TaskRecord]:
    """The tasks whose answers are kept with the stage, with their records."""
    return point.run.stage_record(point.stage).tasks if point.stage else {}


def _compared(after: Checkpoint, pairs: Mapping[str, Checkpoint]) -> list[TaskChanges]:
    problems: list[Problem] = []
    compared = []
    now = _answers(after, list(pairs))
    for task, before in pairs.items():
        then, record = _scored(before)[task], _scored(after)[task]
        if then.test.sha256 != record.test.sha256 or then.metric != record.metric:
            what = "; ".join(differences(then, record)) or f"scored by {record.metric}, not {then.metric}"
            problems.append(Problem(f"task {task}", f"the two are not comparable: {what}"))
            continue
        compared.append(task_changes(task, record.metric, _answers(before, [task])[task], now[task]))
    if problems:
        raise InputErrors(problems)
    return compared


def _answers(point: Checkpoint, tasks: list[str]) -> dict[str, Answers]:
    return {**read_answers(point.run.stage_folder(point.stage) / PREDICTIONS_FILE, tasks)}


def _since(before: Checkpoint, after: Checkpoint) -> str:
    """`stage 1`, or which run and stage."""
    stage = f"stage {before.stage}"
    return stage if before.run.folder == after.run.folder else f"{before.config.name}, {stage}"


def _nothing_to_compare(after: Checkpoint, against: Path | None) -> str:
    if against is not None:
        return f"has no scored task in common with {against}"
    return (
        f"{after.name}, has no earlier task to compare; give --against RUN, or let the run learn another task"
    )
