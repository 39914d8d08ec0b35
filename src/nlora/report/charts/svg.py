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
    return Markup(
        '<svg class="figure" width="{w}" viewBox="0 0 {w} {h}" role="img" aria-label="{label}">{body}</svg>'
    ).format(
        w=_n(scene.width), h=_n(scene.height), label=f"{scene.title}. {scene.description}", body=_body(scene)
    )


def to_svg_file(scene: Scene) -> str:
    """A standalone document that looks as the page prints it."""
    return str(
        Markup(
            '<svg xmlns="http://www.w3.org/2000/svg" width="{w}" height="{h}" viewBox="0 0 {w} {h}">'
            "<title>{title}</title><desc>{desc}</desc><style>{style}</style>"
            '<rect width="{w}" height="{h}" class="f-paper"/>{body}</svg>\n'
        ).format(
            w=_n(scene.width),
            h=_n(scene.height),
            title=scene.title,
            desc=scene.description,
            style=Markup(file_style()),
            body=_body(scene),
        )
    )


def _body(scene: Scene) -> Markup:
    return Markup("").join(
        Markup('<g class="series" data-series="{}">{}</g>').format(
            shape.name, Markup("").join(map(_shape, shape.shapes))
        )
        if isinstance(shape, Group)
        else _shape(shape)
        for shape in scene.shapes
    )


def _shape(shape: Shape) -> Markup:
    match shape:
        case Rect():
            tag = Markup('rect x="{}" y="{}" width="{}" height="{}" class="f-{}"').format(
                _n(shape.x), _n(shape.y), _n(shape.width), _n(shape.height), shape.fill
            )
            return _titled(tag, "rect", shape.title)
        case Line():
            dash = Markup(' stroke-dasharray="{}"').format(shape.dash) if shape.dash else ""
            points = " ".join(f"{_n(x)},{_n(y)}" for x, y in shape.points)
            tag = Markup('polyline points="{}" class="s-{}" stroke-width="{}"{}').format(
                points, shape.stroke, _n(shape.width), dash
            )
            return _titled(tag + Markup(' stroke-linejoin="round"'), "polyline", shape.title)
        case Area():
            points = " ".join(f"{_n(x)},{_n(y)}" for x, y in shape.points)
            return Markup('<polygon points="{}" class="f-{}" fill-opacity="{}"/>').format(
                points, shape.fill, AREA_OPACITY
            )
        case Dot():
            tag = Markup('circle cx="{}" cy="{}" r="{}" class="f-{}"').format(
                _n(shape.x), _n(shape.y), _n(shape.r), shape.fill
            )
            return _titled(tag, "circle", shape.title)
        case Label():
            return _label(shape)


def _label(label: Label) -> Markup:
    place = Markup('x="{}" y="{}"').format(_n(label.x), _n(label.y))
    more = Markup("")
    if label.anchor != "start":
        more += Markup(' text-anchor="{}"').format(label.anchor)
    if label.bold:
        more += Markup(' font-weight="600"')
    if label.angle:
        more += Markup(' transform="rotate({} {} {})"').format(_n(label.angle), _n(label.x), _n(label.y))
    return Markup('<text {} class="f-{}" font-size="{}"{}>{}</text>').format(
        place, label.fill, _n(label.size), more, label.text
    )


def _titled(tag: Markup, name: str, title: str) -> Markup:
    if not title:
        return Markup("<{}/>").format(tag)
    return Markup("<{}><title>{}</title></{}>").format(tag, escape(title), name)


def _n(value: float) -> str:
    """A coordinate with at most two decimals, to keep pages small."""
    return f"{value:.2f}".rstrip("0").rstrip(".")
