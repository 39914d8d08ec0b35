"""A matrix as colored cells with their values."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from nlora.report.charts.palette import heat_role
from nlora.report.charts.scene import Label, Rect, Scene, Shape, clipped, text_width

Cells = Sequence[Sequence[float | None]]
_LONGEST_NAME = 123.0
"""Of a column, in pixels."""


def scale_position(value: float, low: float, high: float) -> float:
    """The position of a value on a color scale, 0 to 1; the middle if the ends are equal."""
    return min(max((value - low) / (high - low), 0.0), 1.0) if high > low else 0.5


def heat_map(
    title: str,
    description: str,
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    cells: Cells,
    low: float,
    high: float,
    text: Callable[[float], str],
    width: float,
    framed: Callable[[int, int], bool] = lambda row, column: row == column,
) -> Scene:
    """Cells colored from `low` to `high`. None leaves a gap; `framed` cells get an outline."""
    left = min(max(text_width(name, 11.5) for name in rows) + 14, width * 0.3)
    cell = min((width - left - 8) / len(columns), 96.0)
    size = 11.5 if cell >= 34 else 9.0
    names = [clipped(name, _LONGEST_NAME, 11) for name in columns]
    room = max(text_width(name, 11) for name in names)
    slanted = room > cell - 6
    top = min(room * 0.72, 90.0) + 16 if slanted else 24.0
    height = min(max(cell * 0.62, 22.0), 40.0)
    shapes: list[Shape] = []
    for column, name in enumerate(names):
        x = left + column * cell + cell / 2
        angle = -40.0 if slanted else 0.0
        shapes.append(Label(x, top - 8, name, "muted", 11, "start" if slanted else "middle", angle=angle))
    for row, name in enumerate(rows):
        y = top + row * height
        shapes.append(Label(left - 8, y + height / 2 + 4, clipped(name, left - 10, 11.5), "ink", 11.5, "end"))
        for column, value in enumerate(cells[row]):
            if value is None:
                continue
            role = heat_role(scale_position(value, low, high))
            x = left + column * cell
            inset = 1.0
            if framed(row, column):  # a frame with a gap stands out on dark cells too
                shapes.append(Rect(x + 1, y + 1, cell - 2, height - 2, "ink"))
                shapes.append(Rect(x + 2.5, y + 2.5, cell - 5, height - 5, "paper"))
                inset = 4.0
            shapes.append(Rect(x + inset, y + inset, cell - 2 * inset, height - 2 * inset, role))
            shapes.append(
                Label(x + cell / 2, y + height / 2 + size * 0.36, text(value), f"on-{role}", size, "middle")
            )
    wide = left + len(columns) * cell + 8
    if slanted:  # the last name leans out to the right
        wide = max(wide, left + (len(columns) - 0.5) * cell + room * 0.8 + 8)
    return Scene(wide, top + len(rows) * height + 8, title, description, tuple(shapes))
