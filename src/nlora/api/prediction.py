"""Answers new texts with the model of a run, using the prompt of one of its tasks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

from nlora.data.fields import Fields
from nlora.data.rows import ProblemList, to_texts
from nlora.data.select import select_tasks
from nlora.data.task import Example, Task
from nlora.data.texts import Texts
from nlora.errors import InputErrors, Problem
from nlora.evaluation.choices import decode_of
from nlora.runs.checkpoint import Checkpoint, StageModel
from nlora.runs.events import Progress

Row = dict[str, Any]
BATCHES = 16
"""Batches of texts that are read and answered before their answers are printed; they are sorted by length."""


def given_rows(texts: Sequence[str | Mapping[str, Any]], fields: Fields) -> list[Row]:
    """Texts, or mappings with the fields of a text, as rows. Raises InputErrors naming every text that is none."""
    if isinstance(texts, str):
        raise InputErrors([Problem("texts", "is a single text; give a list of texts")])
    problems = ProblemList("texts")
    rows = list(to_texts(((f"texts[{i}]", text) for i, text in enumerate(texts)), problems, fields))
    if found := problems.report():
        raise InputErrors(found)
    return rows


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


def check_probabilities(stage: Checkpoint, task: Task) -> None:
    """Raises InputErrors if the task's answers are generated."""
    if task.labels is None:
        what = f"task {task.name} has free text as answers, and only labels have probabilities"
    elif decode_of(task, stage.config.evaluate) == "generate":
        what = "the run generates its answers; set decode=labels for the probabilities of the labels"
    else:
        return
    raise InputErrors([Problem("--probabilities", what)])


def fields_to_answer(stage: Checkpoint, task: Task, index: int) -> Fields:
    """Where new rows have their text: where the task's own files have it. task, index: as of `task_to_answer`."""
    tasks = stage.config.tasks
    if index == len(tasks):
        return Fields(chat=task.chat)
    fields = Fields.of(tasks[index])
    known = next(
        (records[task.name] for _, records in stage.run.scored_records() if task.name in records), None
    )
    return fields if known is None else replace(fields, chat=known.chat)


def predict(
    model: StageModel,
    stage: Checkpoint,
    task: Task,
    index: int,
    rows: Texts | Sequence[Row],
    progress: Progress,
    *,
    probabilities: bool = False,
) -> Iterator[Row]:
    """The rows, each with the model's answer added as `prediction`; a part of them is in memory at a time.

    task, index: as returned by `task_to_answer`.
    rows: at least one, each with the fields of its text (`fields_to_answer`).
    probabilities: also add `probabilities`, by label; see `check_probabilities`.
    """
    # The label is not used; a valid one keeps the checks of the tokenizer quiet.
    label = task.labels[0] if task.labels else "-"
    fields = fields_to_answer(stage, task, index)
    on_answered = progress.scoring(stage.stage, task.name, len(rows))
    served = None
    left = iter(rows)
    while some := list(islice(left, BATCHES * stage.config.evaluate.batch_size)):
        examples = (
            Example(str(i), fields.text_of(row), label, chat=fields.is_chat(row))
            for i, row in enumerate(some)
        )
        part = replace(task, test=tuple(examples))
        served = served or model.serve(stage, [part])
        answers = served.answer(part, index, on_answered, probabilities=probabilities)
        for i, (row, text) in enumerate(zip(some, answers.texts, strict=True)):
            row = {**row, "prediction": text}
            if answers.probabilities is not None:
                each = (float(f"{p:.6g}") for p in answers.probabilities[i])
                row["probabilities"] = dict(zip(task.labels or (), each, strict=True))
            yield row
