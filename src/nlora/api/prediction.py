"""Answers new texts with the model of a run, using the prompt of one of its tasks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
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

SETTINGS = ("batch_size", "decode")
"""The keys of `evaluate` that change the answers to new texts, or how fast they come."""
Row = dict[str, Any]
BATCHES = 16
"""Batches of texts that are read and answered before their answers are printed; they are sorted by length."""


def given_rows(texts: Sequence[str | Mapping[str, Any]], fields: Fields) -> list[Row]:
    """Texts, or mappings with the fields of a text, as rows. Raises InputErrors naming every text that is none."""
    if isinstance(texts, str | Mapping):
        raise InputErrors([Problem("texts", "is a single text; give a list of texts")])
    # Going through a table would give the names of its columns.
    if hasattr(texts, "columns") or not isinstance(texts, Iterable):
        what = f"must be a list of texts, not a {type(texts).__name__}"
        raise InputErrors([Problem("texts", f"{what}; of a data frame, give to_dict('records')")])
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


def refuse_untrained(stage: Checkpoint, name: str, index: int, option: str) -> None:
    """Raises InputErrors if the stage has no model for the task at this position, so that the backbone would answer."""
    if stage.method.updates == "per_task" and 0 < stage.stage <= index:
        what = f"{name} is not learned at stage {stage.stage}, and {stage.config.method.label} has no model for it"
        raise InputErrors([Problem(option, f"{what}; stage 0 is the untrained model")])


@dataclass(frozen=True, slots=True)
class Asked:
    """The task to answer new texts for, or several, one of which is guessed for each text.

    tasks: with their prompts and labels, and their positions in the run. fields: where the texts are in a row.
    quoting: of TSV files.
    """

    tasks: tuple[tuple[Task, int], ...]
    is_guessed: bool
    fields: Fields
    quoting: bool | None

    def added(self, *, probabilities: bool = False) -> list[str]:
        """The fields that `predict` adds to a row."""
        guess = ["task"] if self.is_guessed else []
        return [*guess, "prediction", *(["probabilities"] if probabilities else [])]


def asked_for(stage: Checkpoint, name: str | None) -> Asked:
    """The task of that name; without one, the tasks that the stage has learned, if the run guesses tasks.

    Raises InputErrors if there is no such task, or if one has to be named.
    """
    config = stage.config
    if name is None:
        if why := _why_named(stage):
            names = ", ".join(task.name for task in config.tasks)
            raise InputErrors([Problem("--task", f"{why}; name one of {names}")])
        found = [task_to_answer(stage, task.name) for task in config.tasks[: stage.stage]]
    else:
        found = [task_to_answer(stage, name)]
        refuse_untrained(stage, name, found[0][1], "--task")
    fields = [fields_to_answer(stage, task, index) for task, index in found]
    quoting = [None if index == len(config.tasks) else config.tasks[index].quoting for _, index in found]
    read = [(f.text, f.template, f.messages, f.chat, q) for f, q in zip(fields, quoting, strict=True)]
    if other := [task.name for (task, _), r in zip(found, read, strict=True) if r != read[0]]:
        what = f"{found[0][0].name} and {other[0]} have their texts in different columns; name one of the two"
        raise InputErrors([Problem("--task", what)])
    return Asked(tuple(found), name is None, fields[0], quoting[0])


def _why_named(stage: Checkpoint) -> str | None:
    """Why a task has to be named; None if it can be guessed."""
    if stage.config.serve != "routed":
        return "is needed, because this run does not guess tasks (serve: routed)"
    if stage.config.router.reads == "prompt":
        return "is needed, because this run's router reads prompts, and a prompt is that of a task (router.reads)"
    return None if stage.stage else "is needed, because nothing is learned at stage 0"


def check_probabilities(stage: Checkpoint, asked: Asked) -> None:
    """Raises InputErrors if the answers of a task are generated."""
    for task, _ in asked.tasks:
        if task.labels is None:
            what = f"task {task.name} has free text as answers, and only labels have probabilities"
        elif decode_of(task, stage.config.evaluate) == "generate":
            what = "the run generates its answers; set decode=labels for the probabilities of the labels"
        else:
            continue
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
    asked: Asked,
    rows: Texts | Sequence[Row],
    progress: Progress,
    *,
    probabilities: bool = False,
) -> Iterator[Row]:
    """The rows, each with the model's answer added as `prediction`; a part of them is in memory at a time.

    asked: as returned by `asked_for`. If tasks are guessed, the guess is added as `task`.
    rows: at least one, each with the fields of its text.
    probabilities: also add `probabilities`, by label; see `check_probabilities`.
    """
    tasks, fields = [task for task, _ in asked.tasks], asked.fields
    name = "guessed tasks" if asked.is_guessed else tasks[0].name
    on_answered = progress.scoring(stage.stage, name, len(rows))
    served = None
    left = iter(rows)
    while some := list(islice(left, BATCHES * stage.config.evaluate.batch_size)):
        texts = [
            Example(str(i), fields.text_of(row), "-", chat=fields.is_chat(row)) for i, row in enumerate(some)
        ]
        served = served or model.serve(stage, [_to_answer(task, texts) for task in tasks])
        given = [tasks[0].name] * len(texts)
        if asked.is_guessed and served.router is not None:
            given = served.router.guess(replace(tasks[0], test=tuple(texts)))
        answered: dict[int, Row] = {}
        for task, index in asked.tasks:
            places = [i for i, guess in enumerate(given) if guess == task.name]
            if not places:
                continue
            part = _to_answer(task, [texts[i] for i in places])
            answers = served.answer(part, index, on_answered, probabilities=probabilities, is_known=True)
            guess = {"task": task.name} if asked.is_guessed else {}
            for n, place in enumerate(places):
                row = {**some[place], **guess, "prediction": answers.texts[n]}
                if answers.probabilities is not None:
                    each = (float(f"{p:.6g}") for p in answers.probabilities[n])
                    row["probabilities"] = dict(zip(task.labels or (), each, strict=True))
                answered[place] = row
        yield from (answered[i] for i in range(len(some)))


def _to_answer(task: Task, texts: Sequence[Example]) -> Task:
    """The task with these texts. Their label is not used; a valid one keeps the checks of the tokenizer quiet."""
    label = task.labels[0] if task.labels else "-"
    return replace(task, test=tuple(replace(text, label=label) for text in texts))
