"""How the collision rate and the density of the updates depend on the threshold."""

from __future__ import annotations

import math
from collections.abc import Sequence

from nlora.report.blocks import Figure
from nlora.report.lines import Mark, Series, line_chart
from nlora.report.load import RunFiles
from nlora.report.microscope import Microscope
from nlora.report.palette import series_dash, series_role
from nlora.report.scales import linear_axis, log_axis
from nlora.report.scene import Point, Scene

Looked = Sequence[tuple[RunFiles, Microscope]]


def threshold_figures(looked: Looked) -> list[Figure]:
    """The collision rate of each run over the thresholds, and the density of the updates."""
    rates = [(run.label, _points(found, found.curve.average_collision_rate)) for run, found in looked]
    if len(looked) == 1:
        found = looked[0][1]
        densities = [(name, _points(found, values)) for name, values in found.curve.density.items()]
        what = "For each task's update."
    else:
        densities = [(run.label, _points(found, _mean(found))) for run, found in looked]
        what = "Mean over the updates of each run."
    marks = (Mark(looked[0][1].threshold, "used here"),) if len(looked) == 1 else ()
    figures = [
        _figure(
            "collision-thresholds",
            "Average collision rate by threshold",
            "rate, %",
            "No float is exactly zero, so every rate belongs to a threshold; this is how much it matters.",
            rates,
            marks,
        ),
        _figure(
            "density",
            "Share of entries above the threshold",
            "density, %",
            f"{what} The steeper the fall, the sparser the update.",
            densities,
            marks,
        ),
    ]
    return [figure for figure in figures if figure is not None]


def _points(found: Microscope, values: Sequence[float | None]) -> tuple[Point, ...]:
    pairs = zip(found.curve.thresholds, values, strict=False)
    return tuple(sorted((t, 100 * value) for t, value in pairs if value is not None and t > 0))


def _mean(found: Microscope) -> list[float | None]:
    columns = zip(*found.curve.density.values(), strict=True)
    return [
        None if None in column else math.fsum(v for v in column if v is not None) / len(column)
        for column in columns
    ]


def _figure(
    key: str,
    title: str,
    unit: str,
    caption: str,
    lines: Sequence[tuple[str, tuple[Point, ...]]],
    marks: Sequence[Mark],
) -> Figure | None:
    drawn = [(name, points) for name, points in lines if len(points) > 1]
    if not drawn:
        return None
    series = [
        Series(name, points, series_role(i) if len(drawn) > 1 else "accent", series_dash(i), dots=False)
        for i, (name, points) in enumerate(drawn)
    ]
    x = log_axis("threshold, absolute", [t for s in series for t, _ in s.points])
    y = linear_axis(unit, [value for s in series for _, value in s.points], zero=True)
    inside = [mark for mark in marks if x.low <= mark.x <= x.high]

    def draw(width: float) -> Scene:
        told = "; ".join(
            f"{s.name}: {first[1]:.3g} % at {first[0]:.2g}, {last[1]:.3g} % at {last[0]:.2g}"
            for s in series
            for first, last in [(s.points[0], s.points[-1])]
        )
        return line_chart(title, told, series, x=x, y=y, width=width, marks=inside)

    return Figure(key, title, caption, draw)
