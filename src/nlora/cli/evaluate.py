"""`nlora eval`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from nlora.cli.options import RunFolder, Settings, Stage, evaluate_overrides, writable
from nlora.evaluation.choices import both_or_all, metric_name
from nlora.models.processes import refuse
from nlora.runs.console import TextConsole

if TYPE_CHECKING:
    from nlora.api.evaluation import Evaluation, TaskScore


def evaluate(
    run: RunFolder,
    tasks: Annotated[
        str | None,
        typer.Option(
            "--tasks",
            metavar="A,B",
            help="Tasks of the run, data sets of its data folder, or built-in tasks.",
            show_default="those that the run scored at the stage",
        ),
    ] = None,
    tasks_file: Annotated[
        str | None,
        typer.Option(
            "--tasks-file",
            metavar="FILE",
            help="YAML list of tasks as in a configuration; 'train' may be left out.",
            show_default=False,
        ),
    ] = None,
    stage: Stage = None,
    split: Annotated[
        str | None, typer.Option("--split", help="test or validation.", show_default="as in the run")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data", metavar="DIR", help="The folder of the data sets.", show_default="as in the run"
        ),
    ] = None,
    settings: Settings = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of the table.")] = False,
    out: Annotated[
        str | None,
        typer.Option(
            "--out", metavar="FILE", help="Write every answer to this file (JSONL).", show_default=False
        ),
    ] = None,
) -> None:
    """Score any stage of a run, finished or not, on any tasks."""
    from nlora.api import evaluation
    from nlora.api.downloads import announce_downloads
    from nlora.cli.bars import Bars
    from nlora.runs.atomic import write_text
    from nlora.runs.checkpoint import StageModel, read_stage
    from nlora.runs.events import Progress

    refuse("nlora eval")
    overrides = evaluate_overrides(settings)
    overrides += [f"evaluate.split={split}"] if split is not None else []
    if data is not None:  # relative to the current folder, not to the run's
        overrides.append(f"data={json.dumps(str(Path(data).absolute()) if Path(data).is_dir() else data)}")
    target = None if out is None else writable(out, "--out")
    checkpoint = read_stage(Path(run), stage, overrides, counting=evaluation.SETTINGS)
    names = None if tasks is None else [name.strip() for name in tasks.split(",") if name.strip()]
    with Bars(TextConsole(stderr=True), stages=len(checkpoint.config.tasks)) as bars:
        progress = Progress(bars)
        announce_downloads(checkpoint.config, progress, names or ())
        selected = evaluation.tasks_of(checkpoint, names, None if tasks_file is None else Path(tasks_file))
        found = evaluation.evaluate(StageModel(checkpoint), checkpoint, selected, progress)
    console = TextConsole()
    if as_json:
        console.print_json(json.dumps(found.values()), indent=2, ensure_ascii=not console.is_unicode)
    else:
        console.print(score_table(found))
    if target is not None:  # after the scores: a disk may be full by now
        write_text(target, "".join(f"{json.dumps(p.line())}\n" for p in found.predictions))
    if target is not None and not as_json:
        console.print(f"answers  {target}", markup=False, highlight=False)


def score_table(found: Evaluation) -> Table:
    """The scores, their means, and notes on what they are."""
    config, scores = found.stage.config, found.scores
    table = Table.grid()
    table.add_column(overflow="fold")
    title = (
        f"{config.name}: {config.method_label} on {config.model}, {found.stage.name}, {config.evaluate.split}"
    )
    table.add_row(Text(title, style="bold"))
    table.add_row(_rows(found))
    table.add_row("* the task's score, in percent, as in the accuracy matrix")
    if (kinds := len({s.metric for s in scores})) > 1:
        mean = f"mean of * over the tasks {found.mean('score'):.1f}"
        table.add_row(f"{mean}, across {both_or_all(kinds)} kinds of scores")
    if found.routing is not None:
        table.add_row(f"router: {found.routing.words}")
    for s in scores:
        if s.differs_from_run:
            table.add_row(
                Text(f"! {s.task} differs from what the run scored: {', '.join(s.differs_from_run)}")
            )
        if s.training_examples:
            many = f"{s.training_examples} of the {s.examples} examples"
            table.add_row(Text(f"! {s.task}: {many} are training examples of the run"))
    if not all(s.is_of_run for s in scores):
        table.add_row("+ not a task of this run")
    if any(s.is_bare for s in scores):
        table.add_row(f"- {config.method.label} has no update for it here; the untrained backbone answers")
    return table


def _rows(found: Evaluation) -> Table:
    rows = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    rows.add_column("task", overflow="fold")
    metrics = list(dict.fromkeys(["exact_match", "rougeL", *(s.metric for s in found.scores)]))
    for heading in ("examples", *map(metric_name, metrics), "decode", "seconds"):
        rows.add_column(heading, justify="right", overflow="fold")
    for s in found.scores:
        # The marker has a column of its own, so that digits line up.
        values = dict.fromkeys(metrics, "") | {
            "exact_match": f"{s.exact_match:.1f} ",
            "rougeL": f"{s.rougeL:.1f} ",
            s.metric: f"{s.score:.1f}*",
        }
        rows.add_row(
            Text(s.task + _marks(s)), str(s.examples), *values.values(), s.decode, f"{s.seconds:.1f}"
        )
    if len(found.scores) > 1:
        means = (f"{found.mean('exact_match'):.1f} ", f"{found.mean('rougeL'):.1f} ")
        blank = [""] * len(metrics)
        rows.add_row(Text("mean over tasks"), "", *means, *blank, style="bold")
    return rows


def _marks(s: TaskScore) -> str:
    is_noted = s.differs_from_run or s.training_examples
    return ("" if s.is_of_run else " +") + (" -" if s.is_bare else "") + (" !" if is_noted else "")
