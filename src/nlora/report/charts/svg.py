"""A scene as SVG, colored by the page's style, or as a file with its own style in light colors."""

from __future__ import annotations

from markupsafe import Markup, escape

from nlora.report.charts.palette import LIGHT
from nlora.report.charts.scene import AREA_OPACITY, Area, Dot, Group, Label, Line, Rect, Scene, Shape

FONT = "'Helvetica Neue', Helvetica, Arial, 'Liberation Sans', 'DejaVu Sans', sans-serif"
_FIXED = f"text{{font-family:{FONT};font-variant-numeric:tabular-nums}}polyline{{fill:none}}"


def file_style() -> str:
    """The style of a figure in its own file: light colors, on white."""
    roles = {**LIGHT, "paper": "#ffffff"}
    return _FIXED + "".join(f".f-{role}{{fill:{c}}}.s-{role}{{stroke:{c}}}" for role, c in roles.items())


def to_svg(scene: Scene) -> Markup:
    """For a page. All text is escaped; to a screen reader it is an image with title and description."""
    width, height, label = _n(scene.width), _n(scene.height), escape(f"{scene.title}. {scene.description}")
    return Markup(
        f'<svg class="figure" width="{width}" viewBox="0 0 {width} {height}" role="img" aria-label="{label}">'
        f"{_body(scene)}</svg>"
    )


def to_svg_file(scene: Scene) -> str:
    """A standalone document that looks as the page prints it."""
    width, height = _n(scene.width), _n(scene.height)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">'
        f"<title>{escape(scene.title)}</title><desc>{escape(scene.description)}</desc><style>{file_style()}</style>"
        f'<rect width="{width}" height="{height}" class="f-paper"/>{_body(scene)}</svg>\n'
    )


def _body(scene: Scene) -> str:
    return "".join(
        f'<g class="series" data-series="{escape(shape.name)}">{"".join(map(_shape, shape.shapes))}</g>'
        if isinstance(shape, Group)
        else _shape(shape)
        for shape in scene.shapes
    )


def _shape(shape: Shape) -> str:
    match shape:
        case Rect(x, y, width, height, fill, title):
            place = f'x="{_n(x)}" y="{_n(y)}" width="{_n(width)}" height="{_n(height)}"'
            return _titled(f'rect {place} class="f-{escape(fill)}"', "rect", title)
        case Line(points, stroke, width, dash, title):
            places = " ".join(f"{_n(x)},{_n(y)}" for x, y in points)
            look = f'class="s-{escape(stroke)}" stroke-width="{_n(width)}"'
            dashes = f' stroke-dasharray="{escape(dash)}"' if dash else ""
            tag = f'polyline points="{places}" {look}{dashes} stroke-linejoin="round"'
            return _titled(tag, "polyline", title)
        case Area(points, fill):
            places = " ".join(f"{_n(x)},{_n(y)}" for x, y in points)
            return f'<polygon points="{places}" class="f-{escape(fill)}" fill-opacity="{AREA_OPACITY}"/>'
        case Dot(x, y, r, fill, title):
            place = f'cx="{_n(x)}" cy="{_n(y)}" r="{_n(r)}"'
            return _titled(f'circle {place} class="f-{escape(fill)}"', "circle", title)
        case Label():
            return _label(shape)


def _label(label: Label) -> str:
    x, y = _n(label.x), _n(label.y)
    more = ""
    if label.anchor != "start":
        more += f' text-anchor="{label.anchor}"'
    if label.bold:
        more += ' font-weight="600"'
    if label.angle:
        more += f' transform="rotate({_n(label.angle)} {x} {y})"'
    look = f'class="f-{escape(label.fill)}" font-size="{_n(label.size)}"'
    return f'<text x="{x}" y="{y}" {look}{more}>{escape(label.text)}</text>'


def _titled(tag: str, name: str, title: str) -> str:
    return f"<{tag}><title>{escape(title)}</title></{name}>" if title else f"<{tag}/>"


def _n(value: float) -> str:
    """A coordinate with at most two decimals, to keep pages small."""
    return f"{value:.2f}".rstrip("0").rstrip(".")
