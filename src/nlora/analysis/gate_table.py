"""The verdict of `nlora gate` as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from nlora.runs.console import as_text

if TYPE_CHECKING:
    from nlora.analysis.gate import Gate


def gate_text(verdict: Gate) -> str:
    """The table as plain text, 100 characters wide."""
    return as_text(gate_table(verdict), width=100)


def gate_table(verdict: Gate) -> RenderableType:
    """The verdict as a table for a terminal, with the labels that lost most."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("task", overflow="fold")
    table.add_column("since", overflow="fold")
    for heading in ("before", "after", "change", "worse", "better", "p", ""):
        table.add_column(heading, justify="right")
    for row in verdict.tasks:
        changes = row.changes
        table.add_row(
            Text(changes.task),
            Text(row.since),
            f"{changes.before:.1f}",
            f"{changes.after:.1f}",
            f"{round(changes.after - changes.before, 1) + 0.0:+.1f}",
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
