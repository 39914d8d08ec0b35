"""The part of the command line that asks a run's model: eval and predict. Parsing only.

What the commands do is in `eval_run` and `predict_run`; `cli` adds them to its own.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich.console import Console

asking = typer.Typer()

RunFolder = Annotated[str, typer.Argument(metavar="RUN", help="The folder of a run.", show_default=False)]
Stage = Annotated[
    int | None,
    typer.Option(
        "--stage",
        metavar="K",
        help="The model after this stage, from 1; 0: before any training.",
        show_default="the last committed one",
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="A key of evaluate, as decode=generate or max_samples=100.",
        show_default=False,
    ),
]


@asking.command(name="eval")
def eval_(
    run: RunFolder,
    tasks: Annotated[
        str | None,
        typer.Option(
            "--tasks",
            metavar="A,B",
            help="Tasks of the run, data sets of its data folder, or built-in tasks.",
            show_default="those that the run scored then",
        ),
    ] = None,
    tasks_file: Annotated[
        str | None,
        typer.Option(
            "--tasks-file",
            metavar="FILE",
            help="YAML list of tasks as in a configuration; without 'train' files too.",
            show_default=False,
        ),
    ] = None,
    stage: Stage = None,
    split: Annotated[
        str | None, typer.Option("--split", help="test or validation.", show_default="as in the run")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="DIR", help="Where the data sets lie.", show_default="as in the run"),
    ] = None,
    settings: Settings = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON in place of the table.")] = False,
    out: Annotated[
        str | None,
        typer.Option("--out", metavar="FILE", help="Write every answer there (JSONL).", show_default=False),
    ] = None,
) -> None:
    """Score any stage of a run, finished or not, on any tasks."""
    from nlora.cli.evaluate import eval_command

    eval_command(
        run,
        stage=stage,
        tasks=tasks,
        tasks_file=tasks_file,
        split=split,
        data=data,
        settings=settings or [],
        as_json=as_json,
        out=out,
        console=Console(),
        progress_console=Console(stderr=True),
    )


@asking.command()
def predict(
    run: RunFolder,
    task: Annotated[str, typer.Option("--task", metavar="NAME", help="The task whose prompt asks.")],
    stage: Stage = None,
    file: Annotated[
        str | None,
        typer.Option(
            "--file",
            metavar="FILE",
            help="JSONL, JSON, CSV, TSV or Parquet, a text as 'sentence' in each row; or .txt, one text a line.",
            show_default="standard input",
        ),
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help="What the input is: text, jsonl, json, csv, tsv or parquet.",
            show_default="by the file's suffix; of standard input, JSON or plain text by its first line",
        ),
    ] = None,
    settings: Settings = None,
) -> None:
    """Answer new texts with a run's model; a line of JSON for each."""
    from nlora.cli.predict import predict_command

    predict_command(
        run,
        task=task,
        stage=stage,
        file=file,
        kind=kind,
        settings=settings or [],
        stdin=sys.stdin.buffer,
        progress_console=Console(stderr=True),
    )
