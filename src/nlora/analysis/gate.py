"""Ship or not: which tasks lost too much between two models of a run, or of two runs, or in an export.

A run's answers are in its own files, so nothing is loaded or scored again. An export answers the test examples anew.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nlora.analysis.answer_changes import Answers, TaskChanges, task_changes
from nlora.errors import InputErrors, Problem, is_number, shown_number
from nlora.evaluation.continual_metrics import ROUNDING
from nlora.evaluation.paired_test import holm
from nlora.runs.answers import by_text, read_answers
from nlora.runs.checkpoint import Checkpoint, read_stage
from nlora.runs.events import OnEvent, Progress
from nlora.runs.export.record import exported_stage, is_export, read_record
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

    def __str__(self) -> str:
        """The table that `nlora gate` prints."""
        from nlora.analysis.gate_table import gate_text

        return gate_text(self)

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


@dataclass(frozen=True, slots=True)
class _Judged:
    """The model that the verdict is about. tasks: those that it answers; answers: gives them, by task."""

    name: str
    point: Checkpoint
    tasks: Collection[str]
    answers: Callable[[Sequence[str]], Mapping[str, Answers]]
    is_export: bool = False


def gate(
    run: Path,
    *,
    stage: int | None = None,
    against: Path | None = None,
    against_stage: int | None = None,
    max_drop: float = DEFAULT_MAX_DROP,
    alpha: float | None = None,
    on_event: OnEvent | None = None,
) -> Gate:
    """Compare the model after a stage of a run, or an export, with an earlier or another model, task by task.

    run: the folder of a run or of an export. stage: of a run, from 1; None: the last committed one.
    against: another run; None: the run itself, or the one that was exported.
    against_stage: of that run; None: its last committed stage, or, within one run, for each task the stage that learned
        it. max_drop, alpha: see `Gate`. on_event: receives the progress of an export's scoring.

    Raises InputErrors if there is nothing to compare, or the two were not scored on the same examples; RunError for an
    export that cannot be loaded, or whose run is unknown or gone.
    """
    if not (is_number(max_drop) and max_drop >= 0 and math.isfinite(max_drop)):
        what = f"must be a number of percentage points >= 0, not {shown_number(max_drop)}"
        raise InputErrors([Problem("--max-drop", what)])
    if alpha is not None and not (is_number(alpha) and 0 < alpha < 1):
        raise InputErrors([Problem("--alpha", f"must be between 0 and 1, not {shown_number(alpha)}")])
    after = _export(run, stage, Progress(on_event)) if is_export(run) else _stage(read_stage(run, stage))
    if against is not None or against_stage is not None:
        before = read_stage(against or after.point.run.folder, against_stage, option="--against-stage")
        if not after.is_export and _is_same(before, after.point):
            what = f"{after.name} would be compared with itself; name another run or stage, or leave it out"
            raise InputErrors([Problem("--against" if against is not None else "--against-stage", what)])
        if not before.stage:
            what = "0 is the untrained model, whose answers are not kept; give a stage from 1"
            raise InputErrors([Problem("--against-stage", what)])
        pairs = {task: before for task in _scored(before) if task in after.tasks}
    else:
        pairs = _just_learned(after)
    if not pairs:
        raise InputErrors([Problem(str(run), _nothing_to_compare(after.point, against))])
    compared = _compared(after, pairs)
    corrected = holm([changes.changes.p_value for changes in compared])
    return Gate(
        model=after.name,
        max_drop=max_drop,
        alpha=alpha,
        tasks=tuple(
            TaskVerdict(
                changes,
                since=_since(pairs[changes.task], after.point),
                p_value=p_value,
                is_allowed=changes.drop <= max_drop + ROUNDING or (alpha is not None and p_value >= alpha),
            )
            for changes, p_value in zip(compared, corrected, strict=True)
        ),
    )


def _is_same(a: Checkpoint, b: Checkpoint) -> bool:
    return a.stage == b.stage and a.run.folder.resolve() == b.run.folder.resolve()


def _stage(point: Checkpoint) -> _Judged:
    """The model after a stage, with the answers that are kept with it."""
    return _Judged(
        f"{point.config.name}, {point.name}", point, _scored(point), lambda tasks: _answers(point, tasks)
    )


def _export(folder: Path, stage: int | None, progress: Progress) -> _Judged:
    """An export, which is loaded when its answers are wanted."""
    record = read_record(folder)
    if stage is not None:
        what = f"{folder} is an export of stage {record.stage}; leave it out, or use --against-stage"
        raise InputErrors([Problem("--stage", what)])
    point = exported_stage(folder, record)
    from nlora.runs.export.answered import AnsweredExport  # imports torch, which runs do without

    export = AnsweredExport(folder, record, point, progress)
    scored = [task for task in export.tasks if task in _scored(point)]
    name = f"{point.config.name}, {point.name}, exported {record.options}"
    return _Judged(name, point, scored, export.answers, is_export=True)


def _just_learned(after: _Judged) -> dict[str, Checkpoint]:
    """Each task learned before the stage, with the stage that learned it.

    For an export also the stage's own task, and those that only its stage trained (mtl): it may have lost them, too.
    """
    found, point = {}, after.point
    for stage in range(1, point.stage + after.is_export):
        task = point.config.tasks[stage - 1].name
        if task not in after.tasks:
            continue
        if not point.run.stage_record(stage).is_skipped:
            found[task] = read_stage(point.run.folder, stage)
        elif after.is_export:
            found[task] = point
    return found


def _scored(point: Checkpoint) -> Mapping[str, TaskRecord | None]:
    """The tasks whose answers are kept with the stage, with their records; None: an older version kept none."""
    if not point.stage:
        return {}
    stage = point.run.stage_record(point.stage)
    return {task: stage.tasks.get(task) for task in stage.scores}


def _compared(after: _Judged, pairs: Mapping[str, Checkpoint]) -> list[TaskChanges]:
    problems: list[Problem] = []
    records = _scored(after.point)
    for task, before in pairs.items():
        then, record = _scored(before).get(task), records[task]
        if then is None or record is None:  # the examples are matched by their texts
            continue
        if not record.is_scored_like(then):
            what = "; ".join(differences(then, record))
            problems.append(Problem(f"task {task}", f"the two are not comparable: {what}"))
    if problems:
        raise InputErrors(problems)
    earlier = {task: _answers(before, [task])[task] for task, before in pairs.items()}
    now = after.answers(list(pairs))
    problems += [
        Problem(f"task {task}", "no test example was answered by both")
        for task in pairs
        if earlier[task].keys().isdisjoint(now[task])
    ]
    if problems:
        raise InputErrors(problems)
    # A version that kept no records scored by exact match.
    metrics = {task: record.metric if record else "exact_match" for task, record in records.items()}
    return [task_changes(task, metrics[task], earlier[task], now[task]) for task in pairs]


def _answers(point: Checkpoint, tasks: Sequence[str]) -> dict[str, Answers]:
    found = read_answers(point.run.stage_folder(point.stage) / PREDICTIONS_FILE, tasks)
    return {task: by_text(answers) for task, answers in found.items()}


def _since(before: Checkpoint, after: Checkpoint) -> str:
    """`stage 1`, or which run and stage."""
    stage = f"stage {before.stage}"
    return (
        stage
        if before.run.folder.resolve() == after.run.folder.resolve()
        else f"{before.config.name}, {stage}"
    )


def _nothing_to_compare(after: Checkpoint, against: Path | None) -> str:
    if against is not None:
        return f"has no scored task in common with {against}"
    return (
        f"{after.name}, has no earlier task to compare; give --against RUN, or let the run learn another task"
    )
