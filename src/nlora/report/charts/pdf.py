"""A scene as PDF with embedded fonts, for a publication. Needs matplotlib, the extra `nlora[figures]`.

The shapes of the scene are drawn as they are, so PDF and SVG look the same.
"""

from __future__ import annotations

import io
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nlora.errors import MissingExtraError, missing
from nlora.report.charts.palette import LIGHT
from nlora.report.charts.scene import AREA_OPACITY, Area, Dot, Label, Line, Rect, Scene, Shape
from nlora.runs.atomic import write_bytes

_POINTS = 72 / 96  # of a pixel
_ANCHOR = {"start": "left", "middle": "center", "end": "right"}
_COLORS = {**LIGHT, "paper": "#ffffff"}
# For the characters that DejaVu Sans lacks, such as those of Chinese; each system has others.
_MORE_FONTS = (
    *("Noto Sans CJK SC", "Noto Sans SC", "Source Han Sans SC", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei"),
    *("PingFang SC", "Hiragino Sans GB", "Microsoft YaHei", "SimHei", "Yu Gothic", "Malgun Gothic"),
    *(
        "Noto Sans Arabic",
        "Noto Sans Hebrew",
        "Noto Sans Devanagari",
        "Noto Sans Thai",
        "Nirmala UI",
        "Tahoma",
    ),
    *("Noto Emoji", "Segoe UI Emoji", "Arial Unicode MS"),
)


def check_pdf() -> None:
    """Raises MissingExtraError, with the command that installs it, without matplotlib."""
    if find_spec("matplotlib") is None:
        raise MissingExtraError(f"PDF figures: {missing('matplotlib')}; the SVG files need nothing")


def write_pdf(scene: Scene, path: Path) -> bool:
    """One page of the scene's size. Returns whether the system's fonts have all characters; the others are boxes.

    Raises MissingExtraError without matplotlib, RunError if it cannot write.
    """
    check_pdf()
    from matplotlib import rc_context
    from matplotlib.backends.backend_pdf import FigureCanvasPdf
    from matplotlib.figure import Figure
    from matplotlib.font_manager import fontManager

    known = {font.name for font in fontManager.ttflist}
    fonts = ["DejaVu Sans", *(name for name in _MORE_FONTS if name in known)]
    # Type 42 embeds the outlines, as journals require. No date: the same run gives the same file.
    with rc_context({"pdf.fonttype": 42, "font.family": fonts, "text.parse_math": False}):
        figure = Figure(figsize=(scene.width / 96, scene.height / 96))
        FigureCanvasPdf(figure)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_xlim(0, scene.width)
        axes.set_ylim(scene.height, 0)
        axes.axis("off")
        for order, shape in enumerate(scene.flat()):
            _draw(axes, shape, order)
        buffer = io.BytesIO()
        with warnings.catch_warnings(record=True) as told:
            warnings.filterwarnings("always", "Glyph", UserWarning)
            figure.savefig(buffer, format="pdf", metadata={"Title": scene.title, "CreationDate": None})
    write_bytes(path, [buffer.getvalue()])
    return not any("missing from" in str(warning.message) for warning in told)


def _draw(axes: Any, shape: Shape, order: int) -> None:
    from matplotlib import patches

    match shape:
        case Rect():
            box = patches.Rectangle((shape.x, shape.y), shape.width, shape.height, zorder=order)
            box.set(facecolor=_COLORS[shape.fill], edgecolor="none")
            axes.add_patch(box)
        case Line():
            xs, ys = zip(*shape.points, strict=True)
            dash = tuple(float(part) * _POINTS for part in shape.dash.split())
            axes.plot(
                xs,
                ys,
                color=_COLORS[shape.stroke],
                linewidth=shape.width * _POINTS,
                linestyle=(0, dash) if dash else "-",
                zorder=order,
            )
        case Area():
            area = patches.Polygon(shape.points, closed=True, zorder=order)
            area.set(facecolor=_COLORS[shape.fill], edgecolor="none", alpha=AREA_OPACITY)
            axes.add_patch(area)
        case Dot():
            axes.add_patch(
                patches.Circle((shape.x, shape.y), shape.r, color=_COLORS[shape.fill], zorder=order)
            )
        case Label():
            axes.text(
                shape.x,
                shape.y,
                shape.text,
                color=_COLORS[shape.fill],
                fontsize=shape.size * _POINTS * 0.93,  # DejaVu is wider than the fonts of the page
                ha=_ANCHOR[shape.anchor],
                va="baseline",
                fontweight="bold" if shape.bold else "normal",
                rotation=-shape.angle,
                rotation_mode="anchor",
                zorder=order,
            )
