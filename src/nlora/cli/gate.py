"""`nlora gate`: may this model replace the one before? Made for a CI job: exit status 1 means no."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from nlora.cli import completion

if TYPE_CHECKING:
    from rich.console import RenderableType

    from nlora.analysis.gate import Gate


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

    from rich.console import Console

    from nlora.analysis import gate as analysis
    from nlora.cli.bars import Bars

    with Bars(Console(stderr=True)) as bars:
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
        Console().print(gate_table(verdict))
    if not verdict.passed:
        raise typer.Exit(1)


def gate_table(verdict: Gate) -> RenderableType:
    """The verdict as a table for a terminal, with the labels that lost most."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("task", overflow="fold")
    table.add_column("since", overflow="fold")
    for heading in ("before", "after", "change", "worse", "better", "p", ""):
        table.add_column(heading, justify="right")
    for row in verdict.tasks:
        changes = row.changes
        table.add_row(
            Text(changes.task),
            row.since,
            f"{changes.before:.1f}",
            f"{changes.after:.1f}",
            f"{changes.after - changes.before:+.1f}",
            str(changes.changes.worse),
            str(changes.changes.better),
            "<0.001" if row.p_value < 0.001 else f"{row.p_value:.3f}",
            "" if row.is_allowed else "too much",
        )
    lines = [Text(verdict.model, style="bold"), table, *_labels(verdict)]
    rule = f"allowed: a drop of {verdict.max_drop:g} points"
    if verdict.alpha is not None:
        rule += f", or a larger one with p >= {verdict.alpha:g}"
    lines += [
        Text("worse, better: examples whose answer lost or gained; p: exact paired test, corrected by Holm"),
        Text(f"{rule}; {'passed' if verdict.passed else 'not passed'}", style="bold"),
    ]
    return Group(*lines)


_SHOWN_LABELS = 5


def _labels(verdict: Gate) -> list[RenderableType]:
    """For each task, the labels that lost the most answers."""
    from rich.text import Text

    lines: list[RenderableType] = []
    for row in verdict.tasks:
        lost = {label: c.worse - c.better for label, c in row.changes.labels.items() if c.worse > c.better}
        worst = sorted(lost, key=lost.__getitem__, reverse=True)[:_SHOWN_LABELS]
        if worst:
            labels = row.changes.labels
            shown = ", ".join(
                f"{label} {labels[label].worse} of {labels[label].count} worse, {labels[label].better} better"
                for label in worst
            )
            lines.append(Text(f"{row.changes.task}: {shown}"))
    return lines
