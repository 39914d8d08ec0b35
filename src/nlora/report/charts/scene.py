"""A figure as plain shapes with positions and color roles, from which SVG or PDF is made.

Units are SVG's: pixels at 96 per inch, y downwards. Colors are roles of `palette`, so that one scene serves the light
theme, the dark theme and print. A shape's `title` is shown on hover.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Anchor = Literal["start", "middle", "end"]
Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Rect:
    """A filled box."""

    x: float
    y: float
    width: float
    height: float
    fill: str
    title: str = ""


@dataclass(frozen=True, slots=True)
class Line:
    """A line through points. dash: lengths of strokes and gaps, as SVG's stroke-dasharray."""

    points: tuple[Point, ...]
    stroke: str
    width: float = 1.0
    dash: str = ""
    title: str = ""


@dataclass(frozen=True, slots=True)
class Area:
    """A filled polygon that lets what is under it shine through."""

    points: tuple[Point, ...]
    fill: str


@dataclass(frozen=True, slots=True)
class Dot:
    """A filled circle."""

    x: float
    y: float
    r: float
    fill: str
    title: str = ""


@dataclass(frozen=True, slots=True)
class Label:
    """Text with its baseline at y. angle: degrees, clockwise, about (x, y)."""

    x: float
    y: float
    text: str
    fill: str = "ink"
    size: float = 12.0
    anchor: Anchor = "start"
    bold: bool = False
    angle: float = 0.0


AREA_OPACITY = 0.16

Shape = Rect | Line | Area | Dot | Label


@dataclass(frozen=True, slots=True)
class Group:
    """The shapes of one series, which the page highlights together."""

    name: str
    shapes: tuple[Shape, ...]


@dataclass(frozen=True, slots=True)
class Scene:
    """A whole figure. description: its content in words, for screen readers."""

    width: float
    height: float
    title: str
    description: str
    shapes: tuple[Shape | Group, ...]

    def flat(self) -> list[Shape]:
        """All shapes in the order of drawing, without groups."""
        shapes: list[Shape] = []
        for shape in self.shapes:
            shapes.extend(shape.shapes if isinstance(shape, Group) else (shape,))
        return shapes


def text_width(text: str, size: float = 12.0) -> float:
    """The approximate width of a text in a sans-serif font; wide characters (CJK) count as two."""
    return size * sum(1.05 if ord(c) > 0x2E7F else 0.56 for c in text)


def clipped(text: str, longest: int) -> str:
    """The text, cut to `longest` characters; an ellipsis takes its middle, since names often differ at an end."""
    if len(text) <= longest:
        return text
    end = max(longest - 1, 1) // 3
    return f"{text[: max(longest - 1, 1) - end].rstrip()}…{text[len(text) - end :].lstrip()}"
