"""Answers new texts with the model of a run, using the prompt of one of its tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from nlora.data.fields import Fields
from nlora.data.select import select_tasks
from nlora.data.task import Example, Task
from nlora.runs.checkpoint import Checkpoint, StageModel
from nlora.runs.events import Progress

Row = dict[str, Any]


def task_to_answer(stage: Checkpoint, name: str) -> tuple[Task, int]:
    """A task's prompt and labels, without examples, and its position in the run.

    name: of a task of the run, whose files need not exist any more, or of a task that `nlora eval` finds.
    Raises InputErrors if there is no such task.
    """
    config = stage.config
    for index, source in enumerate(config.tasks):
        if source.name == name and (source.train is not None or source.test is not None):
            kind, instruction = source.type or name, (source.instruction or "").strip()
            return Task(name, kind, instruction, source.labels, (), ()), index
    (found,) = select_tasks(config, stage.loaded.base_folder, names=[name], option="--task")
    return found.task, len(config.tasks) if found.index is None else found.index


def fields_to_answer(stage: Checkpoint, index: int) -> Fields:
    """Where new rows have their text: where the task's own files have it. index: as of `task_to_answer`."""
    tasks = stage.config.tasks
    return Fields.of(tasks[index]) if index < len(tasks) else Fields()


def predict(
    model: StageModel, stage: Checkpoint, task: Task, index: int, rows: Sequence[Row], progress: Progress
) -> list[Row]:
    """The rows, each with the model's answer added as `prediction`.

    task, index: as returned by `task_to_answer`.
    rows: at least one, each with the fields of its text (`fields_to_answer`).
    """
    # The label is not used; a valid one keeps the checks of the tokenizer quiet.
    label = task.labels[0] if task.labels else "-"
    text_of = fields_to_answer(stage, index).text_of
    task = replace(task, test=tuple(Example(str(i), text_of(row), label) for i, row in enumerate(rows)))
    on_answered = progress.scoring(stage.stage, task.name, len(rows))
    answers = model.serve(stage, [task]).answer(task, index, on_answered)
    return [{**row, "prediction": text} for row, text in zip(rows, answers.texts, strict=True)]
