"""`nlora predict`."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Annotated

import typer

from nlora.cli.options import RunFolder, Stage, evaluate_overrides
from nlora.errors import InputErrors, Problem
from nlora.models.processes import refuse
from nlora.runs.console import TextConsole


def predict(
    run: RunFolder,
    task: Annotated[
        str | None,
        typer.Option(
            "--task",
            metavar="NAME",
            help="The task whose prompt is used.",
            show_default="guessed for each text, if the run has serve: routed and router.reads: text",
        ),
    ] = None,
    stage: Stage = None,
    file: Annotated[
        str | None,
        typer.Option(
            "--file",
            metavar="FILE",
            help="JSONL, JSON, CSV, TSV or Parquet with the columns of the task's text; or .txt, one text a line.",
            show_default="standard input",
        ),
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help="The format of the input: text, jsonl, json, csv, tsv or parquet.",
            show_default="by the file's suffix; for standard input, JSON or plain text by its first line",
        ),
    ] = None,
    probabilities: Annotated[
        bool,
        typer.Option("--probabilities", help="Also print the probability of each of the task's labels."),
    ] = False,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="decode or batch_size of evaluate, such as decode=generate.",
            show_default="as in the run",
        ),
    ] = None,
) -> None:
    """Answer new texts with a run's model; prints a line of JSON for each."""
    from nlora.api import prediction
    from nlora.api.downloads import announce_downloads
    from nlora.cli.bars import Bars
    from nlora.data.rows import as_line
    from nlora.data.texts import read_texts
    from nlora.runs.checkpoint import StageModel, read_stage
    from nlora.runs.events import Progress

    refuse("nlora predict")
    console = TextConsole(stderr=True)
    checkpoint = read_stage(Path(run), stage, evaluate_overrides(settings), counting=prediction.SETTINGS)
    asked = prediction.asked_for(checkpoint, task)  # before waiting for anybody's texts
    if probabilities:
        prediction.check_probabilities(checkpoint, asked)
    if file is None and sys.stdin is None:
        raise InputErrors([Problem("--file", "is needed, because standard input is closed")])
    if file is None and sys.stdin.isatty():
        console.print("one text per line; end the input with Ctrl-D", highlight=False)
    path = None if file is None else Path(file)
    stdin = io.BytesIO() if sys.stdin is None else sys.stdin.buffer
    added = asked.added(probabilities=probabilities)
    rows = read_texts(path, stdin, kind=kind, quoting=asked.quoting, fields=asked.fields, added=added)
    if not rows:
        return
    is_unicode = TextConsole().is_unicode
    out = sys.stdout  # while there are bars, rich sends what is printed to their console
    with Bars(console, stages=len(checkpoint.config.tasks), shown=not out.isatty()) as bars:
        progress = Progress(bars)
        announce_downloads(checkpoint.config, progress)
        model = StageModel(checkpoint)
        for row in prediction.predict(model, checkpoint, asked, rows, progress, probabilities=probabilities):
            typer.echo(as_line(row, ascii_only=not is_unicode), file=out)
