"""`nlora eval`: any stage of a run, finished or not, asked any tasks, with the scores that the run itself would print.

    report = evaluate(read_stage(Path("runs/demo/nlora"), stage=2), asked, on_answered)
    report.scores[0].exact_match                  # the entry of R, where the task is one that the run scored then

The answers go through the same code as at the end of a stage, so the same stage and tasks give the same numbers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from nlora.cli.run import announce_downloads
from nlora.data.select import SelectedTask, select_tasks
from nlora.errors import InputErrors, Problem
from nlora.evaluation.choices import Metric
from nlora.runs.atomic import write_text
from nlora.runs.checkpoint import Checkpoint, ServedModel, read_stage
from nlora.runs.progress import RunProgress
from nlora.runs.task_records import differences

if TYPE_CHECKING:
    from nlora.runs.released_files import Prediction

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class TaskScore:
    """What one task came to; exact_match and rougeL in percent of its examples.

    metric: which of the two is its score, as in the accuracy matrix.
    is_of_run: whether the run learns it. is_bare: whether nothing of what was learned answers it.
    differs_from_run: in what it was asked otherwise than by the run itself; None where the run does not know it.
    """

    task: str
    examples: int
    exact_match: float
    rougeL: float  # noqa: N815 - the released key
    metric: Metric
    decode: str
    seconds: float
    is_of_run: bool
    is_bare: bool
    differs_from_run: tuple[str, ...] | None

    @property
    def score(self) -> float:
        """By its own metric."""
        return self.rougeL if self.metric == "rougeL" else self.exact_match


@dataclass(frozen=True, slots=True)
class Report:
    """A stage's scores, and every answer."""

    stage: Checkpoint
    scores: tuple[TaskScore, ...]
    predictions: tuple[Prediction, ...]

    def mean(self, score: str) -> float:
        """Mean over the tasks, not pooled over examples. score: exact_match, rougeL, or score (its own)."""
        return math.fsum(getattr(s, score) for s in self.scores) / len(self.scores)

    def values(self) -> dict[str, Any]:
        """What --json prints."""
        config = self.stage.config
        return {
            "schema": SCHEMA,
            "run": config.output_dir,
            "name": config.name,
            "method": config.method.name,
            "model": config.model,
            "stage": self.stage.stage,
            "split": config.evaluate.split,
            "tasks": [{**asdict(score), "score": score.score} for score in self.scores],
            "exact_match_macro": self.mean("exact_match"),
            "rougeL_macro": self.mean("rougeL"),
            "score_macro": self.mean("score"),
        }


def eval_command(
    run: str,
    *,
    stage: int | None,
    tasks: str | None,
    tasks_file: str | None,
    split: str | None,
    data: str | None,
    settings: Sequence[str],
    as_json: bool,
    out: str | None,
    console: Console,
    progress_console: Console,
) -> Report:
    """Checks everything, asks, prints the table or the JSON, and writes the answers where asked to."""
    overrides = [f"evaluate.{setting.removeprefix('evaluate.')}" for setting in settings]
    overrides += [f"evaluate.split={split}"] if split is not None else []
    if data is not None:  # of the current folder, not of the run's
        overrides.append(f"data={json.dumps(str(Path(data).absolute()) if Path(data).is_dir() else data)}")
    target = None if out is None else _writable(Path(out))
    chosen = read_stage(Path(run), stage, overrides)
    asked = tasks_to_ask(
        chosen,
        [name.strip() for name in tasks.split(",") if name.strip()] if tasks else (),
        None if tasks_file is None else Path(tasks_file),
    )
    with RunProgress(progress_console, stages=len(chosen.config.tasks)) as progress:
        announce_downloads(chosen.loaded, progress)
        report = evaluate(chosen, asked, progress)
    if target is not None:
        write_text(target, "".join(f"{json.dumps(p.line())}\n" for p in report.predictions))
    if as_json:
        console.print_json(json.dumps(report.values()), indent=2)
    else:
        console.print(score_table(report))
        if target is not None:
            console.print(f"answers  {target}", markup=False, highlight=False)
    return report


def tasks_to_ask(
    stage: Checkpoint, names: Sequence[str] = (), file: Path | None = None
) -> list[SelectedTask]:
    """The tasks of these names and of a file of tasks; with neither, those that the run itself scored at the stage.

    Raises InputErrors with every mistake found.
    """
    config = stage.config
    seen = len(config.tasks) if config.evaluate.unseen or not stage.stage else stage.stage
    default = [task.name for task in config.tasks[:seen]]
    return select_tasks(config, stage.loaded.base_folder, names=names, file=file, default=default)


def evaluate(stage: Checkpoint, asked: Sequence[SelectedTask], progress: RunProgress) -> Report:
    """Loads the model and asks it the tasks, one after another."""
    from nlora.evaluation.text_metrics import free_text_score
    from nlora.runs.stage_results import accuracy, predictions_of, task_records_then_and_now

    served = ServedModel(stage, [one.task for one in asked])
    scores, predictions = [], []
    for one in asked:
        task = one.task
        index = len(stage.config.tasks) if one.index is None else one.index
        answers = served.answer(task, index, progress.scoring(stage.stage, task.name, len(task.test)))
        given = predictions_of(task, answers)
        then, now = task_records_then_and_now(stage.run, task)
        scores.append(
            TaskScore(
                task=task.name,
                examples=len(task.test),
                exact_match=accuracy(task, answers),
                rougeL=free_text_score(*zip(*(p.scored for p in given), strict=True)),
                metric=now.metric,
                decode=answers.decode,
                seconds=answers.seconds,
                is_of_run=one.index is not None,
                is_bare=served.is_bare(index),
                differs_from_run=None if one.index is None or then is None else tuple(differences(then, now)),
            )
        )
        predictions += given
    return Report(stage, tuple(scores), tuple(predictions))


def score_table(report: Report) -> Table:
    """The scores, their means, and what they are scores of."""
    config = report.stage.config
    rows = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    rows.add_column("task", overflow="fold")
    for heading in ("examples", "exact match", "ROUGE-L", "decode", "seconds"):
        rows.add_column(heading, justify="right")
    for s in report.scores:
        marks = (
            ("" if s.is_of_run else " +") + (" -" if s.is_bare else "") + (" !" if s.differs_from_run else "")
        )
        # The marker has a place of its own, so that digits stand below digits.
        values = {"exact_match": f"{s.exact_match:.1f} ", "rougeL": f"{s.rougeL:.1f} "}
        values[s.metric] = f"{s.score:.1f}*"
        rows.add_row(
            Text(f"{s.task}{marks}"), str(s.examples), *values.values(), s.decode, f"{s.seconds:.1f}"
        )
    if len(report.scores) > 1:
        means = (f"{report.mean('exact_match'):.1f} ", f"{report.mean('rougeL'):.1f} ")
        rows.add_row(Text("mean over tasks"), "", *means, "", "", style="bold")
    table = Table.grid()
    table.add_column(overflow="fold")
    title = (
        f"{config.name}: {config.method.name} on {config.model}, {report.stage.name}, {config.evaluate.split}"
    )
    table.add_row(Text(title, style="bold"))
    table.add_row(rows)
    table.add_row("* the task's score, in percent, as in the accuracy matrix")
    if len({s.metric for s in report.scores}) > 1:
        table.add_row(
            f"mean of * over the tasks {report.mean('score'):.1f}, which is over both kinds of scores"
        )
    for s in report.scores:
        if s.differs_from_run:
            table.add_row(
                Text(f"! {s.task} is asked otherwise than the run was: {', '.join(s.differs_from_run)}")
            )
    if not all(s.is_of_run for s in report.scores):
        table.add_row("+ not a task of this run")
    if any(s.is_bare for s in report.scores):
        table.add_row(f"- {config.method.name} has no update for it here: the backbone as it came answers")
    return table


def _writable(path: Path) -> Path:
    """A file that can be written later, after the minutes that the answers take."""
    if path.is_dir() or not path.absolute().parent.is_dir():
        why = "is a folder; name a file" if path.is_dir() else f"there is no folder {path.absolute().parent}"
        raise InputErrors([Problem("--out", f"{path}: {why}")])
    return path
