"""`nlora analyze`: the interference of two or more adapters, or of a run's stages, as tables, JSON, CSV or a page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nlora.cli import completion
from nlora.cli.options import writable

if TYPE_CHECKING:
    from nlora.runs.interference_file import Interference


def analyze(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="ADAPTER ADAPTER... | RUN",
            help="PEFT LoRA folders or hub ids, two or more; or the output_dir of one run.",
            autocompletion=completion.runs,
        ),
    ],
    threshold: Annotated[
        float | None,
        typer.Option(
            help="Absolute: an entry counts when it is larger. Default: 0.1 of the root mean square of all entries.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    csv_file: Annotated[
        Path | None, typer.Option("--csv", help="Write all pairs, overall and by module.", show_default=False)
    ] = None,
    html_file: Annotated[
        Path | None, typer.Option("--html", help="Write figures and tables as one page.", show_default=False)
    ] = None,
) -> None:
    """Where the updates of different tasks interfere: collisions, overlap, orthogonality, spectra."""
    import csv
    import io
    import json
    import math

    from nlora.analysis.adapter_sources import measure_adapters
    from nlora.analysis.of_run import looks_like_run, measure_run
    from nlora.analysis.tables import csv_rows, interference_tables
    from nlora.errors import InputErrors, Problem
    from nlora.report.write import write_interference
    from nlora.runs.atomic import write_json, write_text
    from nlora.runs.console import TextConsole
    from nlora.runs.interference_file import ANALYSIS_FILE

    if threshold is not None and not (threshold >= 0 and math.isfinite(threshold)):
        raise InputErrors([Problem("--threshold", f"must be a number >= 0, not {threshold:g}")])
    written = []
    for file, option in ((csv_file, "--csv"), (html_file, "--html")):
        if file is not None:  # the run's own files stay as they are if it cannot be written
            writable(str(file), option)
    if len(sources) == 1 and looks_like_run(Path(sources[0])):
        measured, found = measure_run(Path(sources[0]), threshold)
        written.append(Path(sources[0]) / ANALYSIS_FILE)
        write_json(written[0], found.to_json())
        _tell_summary(Path(sources[0]), found)
    else:
        measured = measure_adapters(sources, threshold)
        found = measured.interference()
    if csv_file is not None:
        lines = io.StringIO(newline="")
        csv.writer(lines).writerows(csv_rows(measured))
        write_text(csv_file, lines.getvalue())
        written.append(csv_file)
    if html_file is not None:
        written.append(write_interference(found, html_file))
    if as_json:
        print(json.dumps(found.to_json(), allow_nan=False, indent=1))
        return
    console = TextConsole()
    console.print(interference_tables(found))
    for path in written:
        console.print(f"written: {path}", markup=False, highlight=False, soft_wrap=True)


def _tell_summary(folder: Path, found: Interference) -> None:
    """Write the collisions into the run's summary, too: `nlora compare` takes them from there."""
    from nlora.errors import RunError
    from nlora.runs.summary import read_summary, write_summary

    try:
        summary = read_summary(folder)
    except RunError:  # none yet, or a broken one, which the next nlora run makes anew
        return
    write_summary(folder, summary.model_copy(update={"collision": found.collision()}))
