"""Bar charts and scatter plots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nlora.report.charts.axes import Axis, number
from nlora.report.charts.lines import Frame, Series, axes, legend, margins
from nlora.report.charts.scene import Dot, Label, Line, Rect, Scene, Shape, clipped, label_within, text_width

_ROW = 26.0


@dataclass(frozen=True, slots=True)
class Bar:
    """One row. parts: name, length in the axis' unit, color role; drawn one after another. text: at its end.

    spread: drawn as a line from its length minus to its length plus this.
    """

    name: str
    parts: tuple[tuple[str, float, str], ...]
    text: str = ""
    spread: float | None = None

    @property
    def total(self) -> float:
        return sum(length for _, length, _ in self.parts)


@dataclass(frozen=True, slots=True)
class Spot:
    """A point of a scatter plot. title: shown on hover."""

    x: float
    y: float
    title: str
    role: str


def bar_chart(
    title: str, description: str, bars: Sequence[Bar], *, axis: Axis, width: float, keys: bool = True
) -> Scene:
    """Horizontal bars with names on the left and values at their ends. keys: add a legend of the parts."""
    longest = min(max(text_width(bar.name) for bar in bars), width * 0.34)
    written = [bar.text or number(bar.total) for bar in bars]
    left, right = longest + 14, max(map(text_width, written)) + 12
    span = width - left - right
    shapes: list[Shape] = []
    for index, (bar, text) in enumerate(zip(bars, written, strict=True)):
        top = 6 + index * _ROW
        middle = top + _ROW / 2 + 4
        shapes.append(Label(left - 8, middle, clipped(bar.name, longest), anchor="end"))
        at = left
        for name, length, role in bar.parts:
            long = max(axis.place(length) - axis.place(0), 0.0) * span
            shapes.append(Rect(at, top + 5, long, _ROW - 10, role, f"{bar.name}, {name}: {number(length)}"))
            at += long
        if bar.spread:
            ends = [
                left + max(axis.place(bar.total + side * bar.spread) - axis.place(0), 0.0) * span
                for side in (-1, 1)
            ]
            height = top + _ROW / 2
            for role, thick in (("paper", 4.0), ("ink", 1.2)):  # a rim, to stand out on the bar
                shapes.append(Line(((ends[0], height), (ends[1], height)), role, thick))
            shapes += [Line(((end, height - 4), (end, height + 4)), "ink", 1.2) for end in ends]
            at = max(at, ends[1])
        shapes.append(Label(at + 6, middle, text, "muted"))
    bottom = 6 + len(bars) * _ROW
    shapes.append(Line(((left, 6), (left, bottom)), "rule"))
    shapes.append(label_within(width, Label(left, bottom + 16, axis.label, "muted", 11)))
    bottom += 24
    kinds = list(dict.fromkeys((name, role) for bar in bars for name, _, role in bar.parts))
    if keys and len(kinds) > 1:
        explained, bottom = legend(
            [Series(name, (), role, width=8.0) for name, role in kinds], left, bottom + 12, width
        )
        shapes += explained
    return Scene(width, bottom, title, description, tuple(shapes))


def scatter_chart(
    title: str,
    description: str,
    spots: Sequence[Spot],
    *,
    x: Axis,
    y: Axis,
    width: float,
    names: Sequence[tuple[str, str]] = (),
) -> Scene:
    """Points, with a line at y = 0 if the axis crosses it. names: the legend, as names with color roles."""
    height = min(380.0, width * 0.75)
    left, right = margins(x, y)
    frame = Frame(left, 34.0, width - left - right, height - 80)
    shapes: list[Shape] = list(axes(frame, x, y))
    if y.low < 0 < y.high:
        zero = frame.at(x, y, (x.low, 0.0))[1]
        shapes.append(Line(((frame.x, zero), (frame.x + frame.width, zero)), "rule", 1.0))
    for spot in spots:
        place = frame.at(x, y, (spot.x, spot.y))
        shapes.append(Dot(*place, 4.2, spot.role, spot.title))
    bottom = height
    if len(names) > 1:
        keys, bottom = legend(
            [Series(name, (), role, width=6.0) for name, role in names], 8, height + 18, width - 8
        )
        shapes += keys
    return Scene(width, bottom, title, description, tuple(shapes))
