"""`nlora gate`: may this model replace the one before? Made for a CI job: exit status 1 means no."""

from __future__ import annotations

from typing import Annotated

import typer

from nlora.cli import completion


def gate(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN|EXPORT",
            help="The folder of a run or of an export.",
            show_default=False,
            autocompletion=completion.runs,
        ),
    ],
    stage: Annotated[
        int | None,
        typer.Option(
            "--stage", metavar="K", help="A run's model after this stage.", show_default="the last one"
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            "--against", metavar="RUN", help="Compare with another run.", show_default="the run itself"
        ),
    ] = None,
    against_stage: Annotated[
        int | None,
        typer.Option(
            "--against-stage",
            metavar="K",
            help="Compare with the model after this stage.",
            show_default="each task's own, or the other run's last one",
        ),
    ] = None,
    max_drop: Annotated[
        float, typer.Option("--max-drop", metavar="POINTS", help="Percentage points that a task may lose.")
    ] = 2.0,
    alpha: Annotated[
        float | None,
        typer.Option(
            "--alpha",
            metavar="P",
            help="Count a drop only if its corrected p-value is below this.",
            show_default="every drop counts",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of the table.")] = False,
) -> None:
    """Which tasks lost answers, and whether that is more than chance; exit status 1 if a task lost too much."""
    import json
    from pathlib import Path

    from nlora.analysis import gate as analysis
    from nlora.analysis.gate_table import gate_table
    from nlora.cli.bars import Bars
    from nlora.runs.console import TextConsole

    with Bars(TextConsole(stderr=True)) as bars:
        verdict = analysis.gate(
            Path(run),
            stage=stage,
            against=None if against is None else Path(against),
            against_stage=against_stage,
            max_drop=max_drop,
            alpha=alpha,
            on_event=bars,
        )
    if as_json:
        print(json.dumps(verdict.values(), indent=1))
    else:
        TextConsole().print(gate_table(verdict))
    if not verdict.passed:
        raise typer.Exit(1)
