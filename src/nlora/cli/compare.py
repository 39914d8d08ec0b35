"""`nlora compare`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, get_args

import typer

from nlora.cli import completion
from nlora.cli.options import writable
from nlora.errors import InputErrors, Problem
from nlora.runs.console import TextConsole

if TYPE_CHECKING:
    from nlora.report.comparison_formats import Format


def compare(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...",
            help="Folders of runs, or folders that contain runs.",
            show_default=False,
            autocompletion=completion.runs,
        ),
    ],
    chosen: Annotated[
        str | None,
        typer.Option("--format", help="table, markdown, latex or csv.", show_default="by --out, else table"),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option("--out", metavar="FILE", help="Write the table to this file.", show_default=False),
    ] = None,
    published: Annotated[
        bool, typer.Option("--published", help="Show every published number for the runs' task orders.")
    ] = False,
    base: Annotated[
        str | None,
        typer.Option(
            "--base",
            metavar="NAME",
            help="Add each one's difference in average accuracy to the runs of this name, with its 95 % interval.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Compare runs in one table: mean and spread over seeds, next to the published numbers."""
    from nlora.report.comparison import compare as compare_runs
    from nlora.report.comparison import read_runs
    from nlora.report.comparison_formats import written
    from nlora.report.comparison_table import ComparisonView
    from nlora.runs.atomic import write_text

    format_ = _format(chosen, out)
    target = None if out is None else writable(out, "--out")
    comparison = compare_runs(read_runs(runs), published="all" if published else "methods", base=base)
    console = TextConsole()
    if target is not None:
        write_text(target, written(comparison, format_))
        console.print(str(target), markup=False, highlight=False, soft_wrap=True)
    elif format_ == "table":
        console.print(ComparisonView(comparison))
    else:
        console.out(written(comparison, format_), highlight=False, end="")


def _format(chosen: str | None, out: str | None) -> Format:
    from pathlib import Path

    from nlora.errors import did_you_mean
    from nlora.report.comparison_formats import SUFFIXES, Format

    if chosen is None:
        return SUFFIXES.get(Path(out).suffix, "table") if out is not None else "table"
    known: tuple[Format, ...] = get_args(Format)
    for format_ in known:
        if format_ == chosen:
            return format_
    hint = did_you_mean(chosen, known)
    raise InputErrors([Problem(f"--format {chosen}", f"no such format; choose {', '.join(known)}{hint}")])
