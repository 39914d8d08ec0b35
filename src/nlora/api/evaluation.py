"""Scores any stage of a run, finished or not, on any tasks.

The answers go through the same code as at the end of a stage, so the same stage and tasks give the run's own numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nlora.data.load import load_tasks
from nlora.data.select import SelectedTask, select_tasks
from nlora.errors import InputErrors, NloraError, Problem
from nlora.evaluation.choices import Metric
from nlora.runs.checkpoint import Checkpoint, StageModel, read_stage
from nlora.runs.events import Progress
from nlora.runs.routing import Routing
from nlora.runs.task_records import differences

if TYPE_CHECKING:
    from nlora.runs.released_files import Prediction

SETTINGS = ("batch_size", "decode", "max_samples", "split", "unseen", "validation_share")
"""The keys of `evaluate` that change which examples of which tasks are scored, and how."""
SCHEMA = 1


@dataclass(frozen=True, slots=True)
class TaskScore:
    """The scores on one task. exact_match, rougeL: in percent of its examples.

    score: in percent, by the task's own metric, as in the accuracy matrix.
    is_of_run: whether the run learns the task. is_bare: whether the untrained backbone answers it.
    differs_from_run: how the task differs from the one that the run scored; None if the run never scored it.
    training_examples: how many of the examples the stage had to train on; counted where split is validation.
    """

    task: str
    examples: int
    exact_match: float
    rougeL: float  # noqa: N815 - the released key
    metric: Metric
    score: float
    decode: str
    seconds: float
    is_of_run: bool
    is_bare: bool
    differs_from_run: tuple[str, ...] | None
    training_examples: int = 0


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The scores of a stage, and every answer. routing: how well tasks were guessed; None if none was."""

    stage: Checkpoint
    scores: tuple[TaskScore, ...]
    predictions: tuple[Prediction, ...]
    routing: Routing | None = None

    def mean(self, score: str) -> float:
        """Mean over the tasks, not pooled over examples. score: exact_match, rougeL, or score (each task's own)."""
        return math.fsum(getattr(s, score) for s in self.scores) / len(self.scores)

    def values(self) -> dict[str, Any]:
        """The scores as JSON values, as printed by `nlora eval --json`."""
        config = self.stage.config
        return {
            "schema": SCHEMA,
            "run": config.output_dir,
            "name": config.name,
            "method": config.method.label,
            "model": config.model,
            "stage": self.stage.stage,
            "split": config.evaluate.split,
            "tasks": [asdict(score) for score in self.scores],
            "exact_match_macro": self.mean("exact_match"),
            "rougeL_macro": self.mean("rougeL"),
            "score_macro": self.mean("score"),
            "routing": None if self.routing is None else self.routing.model_dump(mode="json"),
        }


def tasks_of(
    stage: Checkpoint, names: Sequence[str] | None = None, file: Path | None = None
) -> list[SelectedTask]:
    """The tasks of these names and of a file of tasks; with neither, those that the run itself scored at the stage.

    Raises InputErrors with every mistake found, and for tasks without test examples, as adapters from elsewhere may be.
    """
    if names is not None and not names:
        what = "names no task; leave it out for all tasks that the run scored at the stage"
        raise InputErrors([Problem("--tasks", what)])
    config = stage.config
    seen = len(config.tasks) if config.evaluate.unseen or not stage.stage else stage.stage
    default = [task.name for task in config.tasks[:seen]]
    found = select_tasks(config, stage.loaded.base_folder, names=names or (), file=file, default=default)
    scored = [selected for selected in found if selected.task.test]
    without = [selected.task.name for selected in found if not selected.task.test]
    if without and (names or file is not None or not scored):
        what = (
            f"{', '.join(without)}: no test examples to score; an adapter gets them as a task (docs/runs.md)"
        )
        raise InputErrors([Problem("--tasks", what)])
    return scored


def evaluate(
    model: StageModel, stage: Checkpoint, tasks: Sequence[SelectedTask], progress: Progress
) -> Evaluation:
    """Score the model of a stage on tasks, one after another."""
    from nlora.evaluation.answer import percent
    from nlora.runs.stage_results import predictions_of, task_records_then_and_now, with_prompts

    served = model.serve(stage, [selected.task for selected in tasks])
    learned_from = _learned_from(stage)
    scores: list[TaskScore] = []
    predictions: list[Prediction] = []
    guesses: dict[str, tuple[str, ...]] = {}
    for selected in tasks:
        task, is_of_run = selected.task, selected.index is not None
        index = len(stage.config.tasks) if selected.index is None else selected.index
        answers = served.answer(task, index, progress.scoring(stage.stage, task.name, len(task.test)))
        if answers.guesses is not None and is_of_run:
            guesses[task.name] = answers.guesses
        predicted = predictions_of(task, answers)
        graded = [prediction.answer for prediction in predicted]
        then, now = task_records_then_and_now(stage.run, task)
        scores.append(
            TaskScore(
                task=task.name,
                examples=len(task.test),
                exact_match=percent(graded, "exact_match"),
                rougeL=percent(graded, "rougeL"),
                metric=now.metric,
                score=percent(graded, now.metric),
                decode=answers.decode,
                seconds=answers.seconds,
                is_of_run=is_of_run,
                is_bare=served.is_bare(index),
                differs_from_run=tuple(differences(then, now)) if is_of_run and then is not None else None,
                training_examples=sum(
                    (e.sentence, e.label) in learned_from.get(task.name, ()) for e in task.test
                ),
            )
        )
        predictions += with_prompts(task, predicted)
    learned = [source.name for source in stage.config.tasks[: stage.stage]]
    return Evaluation(stage, tuple(scores), tuple(predictions), Routing.of(learned, guesses))


def _learned_from(stage: Checkpoint) -> dict[str, set[tuple[str, str]]]:
    """The training examples of the tasks that the stage has learned, if validation examples are to be scored.

    Those come from the same files, and another split than the run's holds out other ones. Empty if the files are gone.
    """
    if stage.config.evaluate.split != "validation":
        return {}
    own = read_stage(stage.run.folder, stage.stage)
    try:
        tasks = load_tasks(own.config, base_folder=own.loaded.base_folder)
    except NloraError:
        return {}
    return {task.name: {(e.sentence, e.label) for e in task.train} for task in tasks[: stage.stage]}
