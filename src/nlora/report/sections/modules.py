"""Figures by module: collisions by layer and by kind, nuclear norms by layer.

A layer's value is the mean over its modules of one kind and over all pairs (or updates) of a run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from nlora.report.charts.axes import Axis, linear_axis, number
from nlora.report.charts.bars import Bar, bar_chart
from nlora.report.charts.lines import Series, line_chart
from nlora.report.charts.palette import DASHES, series_role
from nlora.report.charts.scene import Scene
from nlora.report.page_blocks import Figure, Table, words
from nlora.report.run_files import Analyzed
from nlora.report.wording import measured, share
from nlora.runs.interference_file import Number


def layer_figures(runs: Analyzed) -> list[Figure]:
    """Collision rate by layer, one line per kind of module (and run)."""
    lines = _by_layer(runs, "collision_rate", scale=100.0)
    if not lines:
        return []
    text = "Mean over all pairs."
    return [_layer_figure("collision-layers", "Collision rate by layer", "rate, %", text, lines)]


def nuclear_norms(runs: Analyzed) -> Figure | None:
    """Nuclear norm by layer, averaged over the updates."""
    lines = _by_layer(runs, "nuclear_norm")
    if not lines:
        return None
    text = "The sum of an update's singular values, averaged over the updates: how large the updates are in each layer."
    return _layer_figure("nuclear-norm", "Nuclear norm by layer", "nuclear norm", text, lines)


def kind_figures(runs: Analyzed) -> list[Figure]:
    """Collision rate by kind of module."""
    rows: list[tuple[str, str, float]] = []
    for run, found in runs:
        for kind in dict.fromkeys(found.kinds):
            places = [i for i, k in enumerate(found.kinds) if k == kind]
            value = _mean_at(found.by_module.collision_rate, places)
            if value is not None:
                name = f"{kind}, {run.label}" if len(runs) > 1 else kind
                rows.append((name, series_role(run.order) if len(runs) > 1 else "accent", 100 * value))
    if not rows:
        return []
    if len(runs) > 1:  # the runs of one kind together
        rows.sort(key=lambda row: row[0].partition(",")[0])
    bars = [Bar(name, (("collision rate", value, role),), share(value / 100)) for name, role, value in rows]
    axis = linear_axis(
        "collision rate, %, mean over pairs and layers", [bar.total for bar in bars], zero=True
    )

    def draw(width: float) -> Scene:
        description = "; ".join(f"{bar.name}: {bar.text}" for bar in bars)
        return bar_chart(
            "Collision rate by kind of module", description, bars, axis=axis, width=width, keys=False
        )

    return [
        Figure(
            "collision-kinds",
            "Collision rate by kind of module",
            "Mean over pairs and layers.",
            draw,
        )
    ]


def _layer_figure(key: str, title: str, unit: str, text: str, lines: Sequence[Series]) -> Figure:
    layers = sorted({x for line in lines for x, _ in line.points})
    x = _layers_axis(layers)
    y = linear_axis(unit, [value for line in lines for _, value in line.points], zero=True)
    dots = len(layers) <= 40 and len(lines) < 5
    series = [replace(line, dots=dots, width=2.0 if dots else 1.6) for line in lines]

    def draw(width: float) -> Scene:
        description = "; ".join(f"{s.name}: {s.points[0][1]:.3g} to {s.points[-1][1]:.3g}" for s in series)
        return line_chart(title, description, series, x=x, y=y, width=width)

    rows = tuple(
        words(int(layer), *(measured(dict(line.points).get(layer)) for line in lines)) for layer in layers
    )
    numbers = Table(f"{title} ({unit})", ("layer", *(line.name for line in lines)), rows)
    return Figure(key, title, text, draw, numbers)


def _layers_axis(layers: Sequence[float]) -> Axis:
    """Layers as the model counts them, from 0."""
    first, last = layers[0], layers[-1]
    stride = max(1, math.ceil((last - first + 1) / 12))
    ticks = tuple((float(layer), number(layer)) for layer in range(int(first), int(last) + 1, stride))
    return Axis("layer", first, last if last > first else first + 1, ticks)


def _by_layer(runs: Analyzed, measure: str, scale: float = 1.0) -> list[Series]:
    """One line per kind of module and run. Modules outside the layers are left out."""
    lines = []
    many = len(runs) > 1
    kinds = list(dict.fromkeys(kind for _, found in runs for kind in found.kinds))
    for run, found in runs:
        values: Mapping[str, Sequence[Number]] = getattr(found.by_module, measure)
        for which, kind in enumerate(kinds):
            places: dict[int, list[int]] = {}
            for i, (k, layer) in enumerate(zip(found.kinds, found.layers, strict=False)):
                if k == kind and layer is not None:
                    places.setdefault(layer, []).append(i)
            means = [(float(layer), _mean_at(values, at)) for layer, at in sorted(places.items())]
            points = tuple((layer, scale * mean) for layer, mean in means if mean is not None)
            if points:
                name = f"{run.label}, {kind}" if many else kind
                role, dash = (run.order, which) if many else (which, 0)  # colors are runs, or else kinds
                lines.append(Series(name, points, series_role(role), DASHES[dash % len(DASHES)]))
    return lines


def _mean_at(values: Mapping[str, Sequence[Number]], places: Sequence[int]) -> float | None:
    known = [row[i] for row in values.values() for i in places if i < len(row)]
    numbers = [value for value in known if value is not None]
    return math.fsum(numbers) / len(numbers) if numbers else None
