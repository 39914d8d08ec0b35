"""A figure as plain shapes with places and the roles of their colors, before it is SVG or PDF.

    scene = Scene(100, 40, "A line", "It rises.", (Line(((0, 40), (100, 0)), "accent"),))
    to_svg(scene)                        # nlora.report.charts.svg
    write_pdf(scene, Path("line.pdf"))   # nlora.report.charts.pdf

Units are SVG's: pixels at 96 per inch, y downwards. Colors are roles of `nlora.report.charts.palette`, so that one
scene serves the light page, the dark page and paper. `title` of a shape is what hovering over it says.
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


Shape = Rect | Line | Dot | Label


@dataclass(frozen=True, slots=True)
class Group:
    """The shapes of one series, which the page can bring to the front together."""

    name: str
    shapes: tuple[Shape, ...]


@dataclass(frozen=True, slots=True)
class Scene:
    """A whole figure. description: what it shows, for those who cannot see it."""

    width: float
    height: float
    title: str
    description: str
    shapes: tuple[Shape | Group, ...]

    def flat(self) -> list[Shape]:
        """All shapes in the order of drawing, without their groups."""
        shapes: list[Shape] = []
        for shape in self.shapes:
            shapes.extend(shape.shapes if isinstance(shape, Group) else (shape,))
        return shapes


def text_width(text: str, size: float = 12.0) -> float:
    """About how wide a text is in a sans-serif face, wide characters (CJK) counted as two."""
    return size * sum(1.05 if ord(c) > 0x2E7F else 0.56 for c in text)


def clipped(text: str, longest: int) -> str:
    """The text with at most `longest` characters, an ellipsis where the rest was."""
    return text if len(text) <= longest else text[: max(longest - 1, 1)].rstrip() + "…"
