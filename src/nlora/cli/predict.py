"""`nlora predict`: what a run's model answers to new texts, asked with the prompt of one of its tasks.

lines = predict(read_stage(Path("runs/tickets"), stage=None), "tickets", [{"sentence": "It is down"}], progress)
lines[0]                                      # {"sentence": "It is down", "prediction": "network"}
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import typer
from rich.console import Console

from nlora.cli.run import announce_downloads
from nlora.config.schema import Config
from nlora.data.rows import as_line, text_of
from nlora.data.select import select_tasks
from nlora.data.task import Example, Task
from nlora.data.texts import read_texts
from nlora.errors import InputErrors, Problem
from nlora.runs.checkpoint import Checkpoint, ServedModel, read_stage
from nlora.runs.progress import RunProgress

Row = dict[str, Any]


def predict_command(
    run: str,
    *,
    task: str,
    stage: int | None,
    file: str | None,
    kind: str | None = None,
    settings: Sequence[str],
    stdin: IO[bytes],
    progress_console: Console,
) -> None:
    """Reads the texts, answers them, and prints a line of JSON for each, in their order."""
    overrides = [f"evaluate.{setting.removeprefix('evaluate.')}" for setting in settings]
    chosen = read_stage(Path(run), stage, overrides)
    asked, index = _task(chosen.config, chosen.loaded.base_folder, task)  # before waiting for anybody's texts
    if file is None and stdin.isatty():
        progress_console.print("one text a line; an empty input (Ctrl-D) ends it", highlight=False)
    quoting = None if index == len(chosen.config.tasks) else chosen.config.tasks[index].quoting
    rows = read_texts(None if file is None else Path(file), stdin, kind=kind, quoting=quoting)
    with RunProgress(progress_console, stages=len(chosen.config.tasks)) as progress:
        announce_downloads(chosen.loaded, progress)
        lines = _answered(chosen, asked, index, rows, progress)
    for line in lines:
        typer.echo(as_line(line))


def predict(stage: Checkpoint, task: str, rows: Sequence[Row], progress: RunProgress) -> list[Row]:
    """The rows with what the model answers added as `prediction`.

    task: name of a task of the run, or of one that `nlora eval` finds. rows: each with its text as `sentence`,
    `input` or `text`. Raises InputErrors for a task that there is not.
    """
    asked, index = _task(stage.config, stage.loaded.base_folder, task)
    return _answered(stage, asked, index, rows, progress)


def _answered(
    stage: Checkpoint, task: Task, index: int, rows: Sequence[Row], progress: RunProgress
) -> list[Row]:
    if not rows:
        return []
    # The label is not looked at; an answer of the task is one that the tokenizer can write.
    label = task.labels[0] if task.labels else "-"
    examples = tuple(Example(str(i), text_of(row), label) for i, row in enumerate(rows))
    on_answered = progress.scoring(stage.stage, task.name, len(examples))
    asked = replace(task, test=examples)
    answers = ServedModel(stage, [asked]).answer(asked, index, on_answered)
    return [{**row, "prediction": text} for row, text in zip(rows, answers.texts, strict=True)]


def _task(config: Config, base_folder: Path, name: str) -> tuple[Task, int]:
    """The task's prompt and labels, and its place in the run. The files of a task of one's own need not be there."""
    for index, source in enumerate(config.tasks):
        if source.name == name and source.test is not None:
            kind, instruction = source.type or name, (source.instruction or "").strip()
            return Task(name, kind, instruction, source.labels, (), ()), index
    try:
        (found,) = select_tasks(config, base_folder, names=[name])
    except InputErrors as error:
        raise InputErrors(
            Problem(p.where.replace("--tasks", "--task"), p.what) for p in error.problems
        ) from error
    return found.task, len(config.tasks) if found.index is None else found.index
