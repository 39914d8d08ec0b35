"""Figures of the collision rate and the density of the updates by threshold."""

from __future__ import annotations

import math
from collections.abc import Sequence

from nlora.report.charts.axes import linear_axis, log_axis
from nlora.report.charts.lines import Mark, Series, line_chart
from nlora.report.charts.palette import series_dash, series_role
from nlora.report.charts.scene import Point, Scene
from nlora.report.page_blocks import Figure
from nlora.report.run_files import Analyzed
from nlora.runs.interference_file import Interference

Lines = Sequence[tuple[str, int, tuple[Point, ...]]]  # name, index of its color, points
Values = Sequence[float | None]
_OWN_SCALE = "threshold, in units of each update's own root mean square"


def threshold_figures(runs: Analyzed) -> list[Figure]:
    """Collision rates over thresholds, absolute and relative, and the density of the updates."""
    many = len(runs) > 1
    marks = () if many else (Mark(runs[0][1].threshold, "used here"),)
    absolute, relative = [], []
    for run, found in runs:
        absolute.append(
            (run.label, run.order, _points(found.curve.thresholds, found.curve.average_collision_rate))
        )
        own = found.relative_curve
        relative.append((run.label, run.order, _points(own.factors, own.average_collision_rate)))
    why = "No entry is exactly zero, so every rate depends on a threshold. This shows how much."
    scale = "Thresholds relative to each update's size: do updates collide where each is largest, however small it is?"
    density = "Mean over the updates of each run." if many else "One line per update."
    title = "Average collision rate by threshold"
    figures = [
        _figure("collision-thresholds", title, why, absolute, marks),
        _figure("collision-relative", f"{title}, relative", scale, relative, (), across=_OWN_SCALE),
        _figure(
            "density",
            "Share of entries above the threshold",
            density,
            _densities(runs),
            marks,
            unit="density, %",
        ),
    ]
    return [figure for figure in figures if figure is not None]


def _densities(runs: Analyzed) -> Lines:
    if len(runs) == 1:
        curve = runs[0][1].curve
        return [
            (name, i, _points(curve.thresholds, own)) for i, (name, own) in enumerate(curve.density.items())
        ]
    return [(run.label, run.order, _points(found.curve.thresholds, _mean(found))) for run, found in runs]


def _points(thresholds: Sequence[float], values: Values) -> tuple[Point, ...]:
    """In percent, without a threshold of 0, which a logarithmic axis cannot show."""
    pairs = zip(thresholds, values, strict=False)
    return tuple(sorted((t, 100 * value) for t, value in pairs if value is not None and t > 0))


def _mean(found: Interference) -> list[float | None]:
    columns = zip(*found.curve.density.values(), strict=True)
    return [
        None if None in column else math.fsum(v for v in column if v is not None) / len(column)
        for column in columns
    ]


def _figure(
    key: str,
    title: str,
    caption: str,
    lines: Lines,
    marks: Sequence[Mark],
    *,
    across: str = "threshold, absolute",
    unit: str = "rate, %",
) -> Figure | None:
    drawn = [line for line in lines if len(line[2]) > 1]
    if not drawn:
        return None
    series = [
        Series(name, points, series_role(i) if len(lines) > 1 else "accent", series_dash(i), dots=False)
        for name, i, points in drawn
    ]
    x = log_axis(across, [t for s in series for t, _ in s.points])
    y = linear_axis(unit, [value for s in series for _, value in s.points], zero=True)
    inside = [mark for mark in marks if x.low <= mark.x <= x.high]

    def draw(width: float) -> Scene:
        description = "; ".join(
            f"{s.name}: {first[1]:.3g} % at {first[0]:.2g}, {last[1]:.3g} % at {last[0]:.2g}"
            for s in series
            for first, last in [(s.points[0], s.points[-1])]
        )
        return line_chart(title, description, series, x=x, y=y, width=width, marks=inside)

    return Figure(key, title, caption, draw)
