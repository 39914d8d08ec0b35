"""`nlora report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nlora.cli import completion
from nlora.runs.console import TextConsole


def report(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN",
            help="The output_dir of each run, or a folder of runs.",
            autocompletion=completion.runs,
        ),
    ],
    out: Annotated[
        str | None,
        typer.Option(
            "--out",
            metavar="FILE",
            help="The page to write; by default report.html in the run's folder, or here for several runs.",
            show_default=False,
        ),
    ] = None,
    figures: Annotated[
        str | None,
        typer.Option(
            "--figures",
            metavar="DIR",
            help="Also write the paper's figures to this folder, as SVG and PDF.",
            show_default=False,
        ),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            "--base",
            metavar="NAME",
            help="The runs that the others' differences are to, by their name on the page.",
            show_default="inclora, else the first",
        ),
    ] = None,
) -> None:
    """Show a run, or several side by side, as one HTML page that works offline."""
    from nlora.report.write import check_figures_folder, write_figures, write_report
    from nlora.runs.layout import REPORT_FILE
    from nlora.runs.run_yaml import run_folders

    folders = [str(folder) for folder in run_folders(runs)]
    # A single run keeps its page; a page of several belongs to none of their folders.
    default = Path(folders[0], REPORT_FILE) if len(folders) == 1 else Path(REPORT_FILE)
    if figures is not None:
        check_figures_folder(figures)
    written = [write_report(folders, default if out is None else out, base=base)]
    if figures is not None:
        written += write_figures(folders, figures, base=base)
    for path in written:
        TextConsole().print(str(path), markup=False, highlight=False, soft_wrap=True)
