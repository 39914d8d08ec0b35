"""A figure as plain shapes with positions and color roles, from which SVG or PDF is made.

Units are SVG's: pixels at 96 per inch, y downwards. Colors are roles of `palette`, so that one scene serves the light
theme, the dark theme and print. A shape's `title` is shown on hover.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal
from unicodedata import east_asian_width

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


def label_within(width: float, label: Label) -> Label:
    """The label, which begins at its x, moved left as far as it would leave a scene of this width."""
    return replace(label, x=max(min(label.x, width - text_width(label.text, label.size)), 2.0))


def text_width(text: str, size: float = 12.0, *, bold: bool = False) -> float:
    """About the width of a text in a sans-serif font, in pixels; rather too wide than too narrow."""
    return size * sum(map(_em, text)) * (1.08 if bold else 1.0)


def _em(character: str) -> float:
    if east_asian_width(character) in "WF":
        return 1.05 if ord(character) < 0x1F000 else 1.4  # an emoji
    if character in "mwMW%@…":
        return 0.95
    return 0.74 if character.isupper() or "\u0370" <= character < "\u2000" else 0.56


def clipped(text: str, room: float, size: float = 12.0, *, bold: bool = False) -> str:
    """The text, cut to `room` pixels; an ellipsis takes its middle, since names often differ at an end."""
    short, kept = text, len(text)
    while text_width(short, size, bold=bold) > room and kept > 1:
        kept -= 1
        end = kept // 3
        short = f"{text[: kept - end].rstrip()}…{text[len(text) - end :].lstrip()}"
    return short
