"""A chart of values with their intervals: one row each, a dot on a line from end to end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nlora.report.charts.axes import Axis
from nlora.report.charts.scene import Dot, Group, Label, Line, Scene, Shape, clipped, label_within, text_width

_ROW = 26.0
_HEADING = 24.0


@dataclass(frozen=True, slots=True)
class IntervalRow:
    """One row. text: the value as written at the right. single: what it is the mean of, drawn as small dots.

    group: rows of the same group stand together under its name; rows without a group have no heading.
    """

    name: str
    value: float
    interval: tuple[float, float] | None
    text: str
    role: str = "accent"
    single: tuple[float, ...] = ()
    group: str = ""


def interval_chart(
    title: str, description: str, rows: Sequence[IntervalRow], *, axis: Axis, width: float
) -> Scene:
    """Names on the left, values in words on the right; in a narrow chart the words are above each line."""
    narrow = width < 500
    longest = min(max(text_width(row.name) for row in rows), width * 0.3)
    words = max(text_width(row.text, 11) for row in rows) + 14
    left, right = longest + 14, 12.0 if narrow else words
    span, height = width - left - right, _ROW + (12.0 if narrow else 0.0)
    shapes: list[Shape | Group] = []
    at, group = 6.0, ""
    for row in rows:
        if row.group != group:
            group = row.group
            shapes.append(Label(2, at + 15, clipped(group, width - 4, bold=True), size=12, bold=True))
            at += _HEADING
        middle = at + height - _ROW / 2
        shapes.append(Label(left - 8, middle + 4, clipped(row.name, longest), anchor="end"))
        if narrow:
            shapes.append(Label(width - 2, at + 12, row.text, "muted", 11, "end"))
        else:
            shapes.append(Label(width - right + 12, middle + 4, row.text, "muted", 11))
        shapes.append(Group(row.name, tuple(_drawn(row, axis, left, span, middle))))
        at += height
    shapes = [*_grid(axis, left, span, at), *shapes]
    shapes.append(label_within(width, Label(left, at + 32, axis.label, "muted", 11)))
    return Scene(width, at + 40, title, description, tuple(shapes))


def _drawn(row: IntervalRow, axis: Axis, left: float, span: float, middle: float) -> list[Shape]:
    def place(value: float) -> float:
        return left + min(max(axis.place(value), 0.0), 1.0) * span

    shapes: list[Shape] = []
    if row.interval is not None:
        low, high = map(place, row.interval)
        shapes.append(Line(((low, middle), (high, middle)), row.role, 2.0))
        shapes += [Line(((end, middle - 4), (end, middle + 4)), row.role, 1.5) for end in (low, high)]
    shapes += [
        Dot(place(value), middle, 2.0, "muted", f"{row.name}: {axis.text(value)}") for value in row.single
    ]
    shapes.append(Dot(place(row.value), middle, 4.4, row.role, f"{row.name}: {row.text}"))
    return shapes


def _grid(axis: Axis, left: float, span: float, bottom: float) -> list[Shape]:
    room = max(1, int(span / (max(text_width(text, 11) for _, text in axis.ticks) + 10)))
    stride = -(-len(axis.ticks) // room)
    shapes: list[Shape] = []
    for index, (value, text) in enumerate(axis.ticks):
        x = left + axis.place(value) * span
        role = "rule" if value == 0 else "faint"
        shapes.append(Line(((x, 6.0), (x, bottom)), role))
        if index % stride == 0:
            shapes.append(Label(x, bottom + 15, text, "muted", 11, "middle"))
    return shapes
