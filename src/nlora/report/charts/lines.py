"""Line charts: one chart with all series, or a small one for each series over the others in gray."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from nlora.report.charts.axes import Axis
from nlora.report.charts.scene import Area, Dot, Group, Label, Line, Point, Scene, Shape, clipped, text_width

NARROW = 560
"""Below this width series are named under the chart, not at the ends of their lines."""
_LINE_HEIGHT = 15.0
_LONGEST_NAME, _LONGEST_KEY = 148.0, 228.0
"""At the end of a line and in a legend, in pixels."""
_TEXT = 12.0


@dataclass(frozen=True, slots=True)
class Series:
    """A named line in the units of the axes.

    dots: mark each point, with its value on hover. breaks: x values across which no line is drawn.
    band: low and high end at each x, drawn as an area under the line.
    """

    name: str
    points: tuple[Point, ...]
    role: str
    dash: str = ""
    dots: bool = True
    width: float = 2.0
    breaks: tuple[float, ...] = ()
    band: tuple[tuple[float, float, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Panel:
    """One small chart: its series over the others in gray."""

    title: str
    series: tuple[Series, ...]
    background: tuple[Series, ...] = ()


@dataclass(frozen=True, slots=True)
class Mark:
    """A named thin line at an x value where something begins."""

    x: float
    name: str


@dataclass(frozen=True, slots=True)
class Frame:
    """The rectangle that the axes span, in pixels."""

    x: float
    y: float
    width: float
    height: float

    def at(self, x: Axis, y: Axis, point: Point) -> Point:
        """The position of a data point in pixels."""
        return (
            self.x + x.place(point[0]) * self.width,
            self.y + (1 - y.place(point[1])) * self.height,
        )


def line_chart(
    title: str,
    description: str,
    series: Sequence[Series],
    *,
    x: Axis,
    y: Axis,
    width: float,
    height: float = 340.0,
    marks: Sequence[Mark] = (),
) -> Scene:
    """All series in one frame, named at their ends, or below if it is narrow or they are more than ten."""
    several = len(series) > 1
    at_ends = several and width >= NARROW and len(series) <= 10
    longest = max((text_width(clipped(s.name, _LONGEST_NAME)) for s in series), default=0.0)
    left, right = margins(x, y)
    right = max(right, longest + 20 if at_ends else 0.0)
    frame = Frame(left, 34.0 if not marks else 52.0, width - left - right, height - (80 if not marks else 98))
    shapes: list[Shape | Group] = [*axes(frame, x, y), *_marks(frame, x, marks)]
    shapes += [Group(s.name, drawn(s, frame, x, y)) for s in series]
    if at_ends:
        shapes += _end_labels(series, frame, x, y)
    bottom = height
    if several and not at_ends:
        keys, bottom = legend(series, 8.0, height + 18, width - 8)
        shapes += keys
    return Scene(width, bottom, title, description, tuple(shapes))


def small_multiples(
    title: str,
    description: str,
    panels: Sequence[Panel],
    *,
    x: Axis,
    y: Axis,
    width: float,
    names: Sequence[Series] = (),
) -> Scene:
    """Panels in rows, all with the same axes. names: the legend, if colors mean runs."""
    rows = -(-len(panels) // max(1, int(width // 155)))
    columns = -(-len(panels) // rows)  # no row much shorter than the others
    cell, gap = width / columns, 18.0
    height = min(max(0.6 * cell, 128.0), 170.0)
    left = 6 + max(text_width(text, 10) for _, text in y.ticks) + 4
    shapes: list[Shape | Group] = []
    for index, panel in enumerate(panels):
        row, column = divmod(index, columns)
        frame = Frame(column * cell + left, row * (height + gap) + 26, cell - left - 12, height - 48)
        heading = clipped(panel.title, cell - left, 11.5, bold=True)
        shapes.append(Label(frame.x, frame.y - 12, heading, size=11.5, bold=True))
        shapes += axes(frame, x, y, size=10, named=False, most=max(2, int(frame.width / 34)))
        for other in panel.background:
            shapes.append(Line(_places(other, frame, x, y), "rule", 1.0))
        for s in panel.series:
            shapes.append(Group(s.name, drawn(s, frame, x, y, r=2.4)))
    bottom = rows * (height + gap)
    shapes.append(Label(left, bottom + 4, f"down: {y.label}; across: {x.label}", "muted", 11))
    bottom += 14
    if len(names) > 1:
        keys, bottom = legend(names, 8.0, bottom + 12, width - 8)
        shapes += keys
    return Scene(width, bottom, title, description, tuple(shapes))


def margins(x: Axis, y: Axis) -> tuple[float, float]:
    """The room left and right of a frame, in pixels, for the values of y and for those of x at the ends."""
    out = [(text_width(text) + 8, 0.5 - x.place(value)) for value, text in x.ticks]
    left = 8 + max(text_width(text) for _, text in y.ticks) + 6
    return max([left, *(wide * by for wide, by in out)]), max([14.0, *(-wide * by for wide, by in out)])


def axes(
    frame: Frame, x: Axis, y: Axis, *, size: float = _TEXT, named: bool = True, most: int | None = None
) -> list[Shape]:
    """Grid lines, ticks with their values, and the axes' names, written horizontally."""
    shapes: list[Shape] = []
    for value, text in y.ticks:
        height = frame.y + (1 - y.place(value)) * frame.height
        shapes.append(Line(((frame.x, height), (frame.x + frame.width, height)), "faint"))
        shapes.append(Label(frame.x - 6, height + size * 0.35, text, "muted", size, "end"))
    base = frame.y + frame.height
    shapes.append(Line(((frame.x, base), (frame.x + frame.width, base)), "rule"))
    room = frame.width / (max(1, len(x.ticks) - 1) if most is None else most)
    fits = [text_width(text, size) + 6 <= max(room, 1.0) for _, text in x.ticks]
    stride = 1
    if not all(fits) or (most is not None and len(x.ticks) > most):
        widest = max(text_width(text, size) for _, text in x.ticks) + 8
        stride = max(1, -(-len(x.ticks) // max(1, int(frame.width / widest))))
    for index, (value, text) in enumerate(x.ticks):
        if index % stride == 0:
            place = frame.x + x.place(value) * frame.width
            shapes.append(Line(((place, base), (place, base + 4)), "rule"))
            shapes.append(Label(place, base + size + 6, text, "muted", size, "middle"))
    if named:
        shapes.append(Label(2, 14, y.label, "muted", size))
        shapes.append(Label(frame.x + frame.width / 2, base + 38, x.label, "muted", size, "middle"))
    return shapes


def drawn(s: Series, frame: Frame, x: Axis, y: Axis, *, r: float = 3.2) -> tuple[Shape, ...]:
    """A series as shapes: its lines, and dots that show their value on hover.

    An isolated point always gets a dot, and its band is a vertical line.
    """
    shapes = _band(s, frame, x, y)
    for _, piece in groupby(s.points, key=lambda point: bisect_left(s.breaks, point[0])):
        points = tuple(piece)
        places = tuple(frame.at(x, y, point) for point in points)
        if len(places) > 1:
            shapes.append(Line(places, s.role, s.width, s.dash, s.name))
        if s.dots or len(places) == 1:
            for (value_x, value_y), (place_x, place_y) in zip(points, places, strict=True):
                title = f"{s.name}: {y.text(value_y)} at {x.text(value_x)}"
                shapes.append(Dot(place_x, place_y, r, s.role, title))
    return tuple(shapes)


def _band(s: Series, frame: Frame, x: Axis, y: Axis) -> list[Shape]:
    low = [frame.at(x, y, (place, bottom)) for place, bottom, _ in s.band]
    high = [frame.at(x, y, (place, top)) for place, _, top in s.band]
    if len(s.band) == 1:
        return [Line((*low, *high), s.role, 1.2)]
    return [Area((*low, *reversed(high)), s.role)] if s.band else []


def legend(series: Sequence[Series], left: float, top: float, right: float) -> tuple[list[Shape], float]:
    """The legend in rows, and its lower end."""
    shapes: list[Shape] = []
    at, y = left, top
    for s in series:
        name = clipped(s.name, _LONGEST_KEY)
        wide = 26 + text_width(name) + 18
        if at > left and at + wide > right:
            at, y = left, y + _LINE_HEIGHT + 3
        shapes.append(Line(((at, y - 4), (at + 20, y - 4)), s.role, s.width, s.dash))
        shapes.append(Label(at + 26, y, name, size=_TEXT))
        at += wide
    return shapes, y + 10


def _places(s: Series, frame: Frame, x: Axis, y: Axis) -> tuple[Point, ...]:
    return tuple(frame.at(x, y, point) for point in s.points)


def _marks(frame: Frame, x: Axis, marks: Sequence[Mark]) -> list[Shape]:
    """The marks, with names where they do not overlap the next mark."""
    shapes: list[Shape] = []
    for index, mark in enumerate(marks):
        place = frame.x + x.place(mark.x) * frame.width
        ends = x.place(marks[index + 1].x) if index + 1 < len(marks) else 1.0
        room = frame.x + ends * frame.width - place - 6
        shapes.append(Line(((place, frame.y - 12), (place, frame.y + frame.height)), "rule", 1.0, "2 3"))
        name = mark.name if text_width(mark.name, 11) <= room else mark.name.partition(" ")[0]
        if text_width(name, 11) <= room:
            shapes.append(Label(place + 3, frame.y - 4, name, "muted", 11))
    return shapes


def _end_labels(series: Sequence[Series], frame: Frame, x: Axis, y: Axis) -> list[Shape]:
    """Names at the ends of the lines, moved apart until they do not overlap."""
    wanted = sorted((frame.at(x, y, s.points[-1])[1], index) for index, s in enumerate(series) if s.points)
    heights: list[float] = []
    for height, _ in wanted:
        heights.append(max(height, heights[-1] + _LINE_HEIGHT) if heights else height)
    over = heights[-1] - (frame.y + frame.height) if heights else 0.0
    if over > 0:  # push back up from the bottom
        limit = frame.y + frame.height
        for index in range(len(heights) - 1, -1, -1):
            heights[index] = min(heights[index], limit)
            limit = heights[index] - _LINE_HEIGHT
    return [
        Label(
            frame.x + frame.width + 10,
            height + 4,
            clipped(series[index].name, _LONGEST_NAME),
            series[index].role,
        )
        for height, (_, index) in zip(heights, wanted, strict=True)
    ]
