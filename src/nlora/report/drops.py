"""Collision against forgetting: one point for each pair of tasks, with the correlation as the analysis computed it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nlora.report.bars import Spot, scatter_chart
from nlora.report.blocks import Block, Figure, Pair, Table, Text, words
from nlora.report.load import RunFiles
from nlora.report.microscope import Drop, Forgetting, Microscope
from nlora.report.palette import series_role
from nlora.report.phrases import change, measured, share
from nlora.report.scales import linear_axis, number
from nlora.report.scene import Scene

Looked = Sequence[tuple[RunFiles, Microscope]]

_MEASURES = (("collision_rate", "collision rate, %", 100.0), ("overlap_energy", "overlap energy", 1.0))


def drop_blocks(looked: Looked, *, many: bool) -> list[Block]:
    """Scatter plots, what the correlation says, and the numbers."""
    known = [(run.label, found.forgetting) for run, found in looked if found.forgetting is not None]
    if not any(forgetting.pairs for _, forgetting in known):
        return []
    figures = [f for name, axis, scale in _MEASURES if (f := _scatter(known, name, axis, scale)) is not None]
    blocks: list[Block] = [Pair(tuple(figures))] if len(figures) > 1 else list(figures)
    for label, forgetting in known:
        said = [
            _correlation_words(name, axis, forgetting.correlation.get(name)) for name, axis, _ in _MEASURES
        ]
        text = " ".join(part for part in said if part)
        if text:
            blocks.append(Text(f"{label}: {text}" if many else text))
    blocks.append(_numbers(known, many=many))
    return blocks


def _scatter(known: Sequence[tuple[str, Forgetting]], name: str, axis: str, scale: float) -> Figure | None:
    spots = []
    for index, (label, forgetting) in enumerate(known):
        role = series_role(index) if len(known) > 1 else "accent"
        for drop in forgetting.pairs:
            value: float | None = getattr(drop, name)
            if value is not None and drop.drop is not None:
                who = f"{label}: " if len(known) > 1 else ""
                says = f"{who}learning {drop.later} cost {drop.earlier} {drop.drop:.1f} points"
                spots.append(Spot(scale * value, drop.drop, says, role))
    if not spots:
        return None
    x = linear_axis(axis, [spot.x for spot in spots])
    y = linear_axis("points lost", [spot.y for spot in spots], zero=True)
    plain = axis.removesuffix(", %")
    names = [(label, series_role(i)) for i, (label, _) in enumerate(known)]

    def draw(width: float) -> Scene:
        told = (
            f"{len(spots)} pairs of tasks; across: {axis}; up: what learning the later task cost the earlier."
        )
        # Two of these stand side by side on a wide page.
        title = f"Forgetting against {plain}"
        return scatter_chart(title, told, spots, x=x, y=y, width=min(width, 420.0), names=names)

    caption = (
        "A point is a pair of tasks: what learning the later one cost the earlier one, in that stage alone."
    )
    return Figure(f"forgetting-{name.replace('_', '-')}", f"Forgetting against {plain}", caption, draw)


def _correlation_words(name: str, axis: str, found: Mapping[str, Any] | None) -> str:
    """As much as the file says, in one sentence."""
    if not found:
        return ""
    plain = axis.removesuffix(", %")
    said = [
        f"{key.capitalize()} {number(float(found[key]))}"
        for key in ("pearson", "spearman")
        if _is_number(found.get(key))
    ]
    if not said:
        return ""
    more = []
    if _is_number(found.get("n")):
        more.append(f"{found['n']} pairs")
    for key, value in found.items():
        if key in {"pearson", "spearman", "n"} or key.startswith("_"):
            continue
        words_of_key = key.replace("_", " ")
        if _is_number(value):
            more.append(f"{words_of_key} {number(float(value))}")
        elif isinstance(value, list) and len(value) == 2 and all(map(_is_number, value)):
            more.append(f"{words_of_key} {number(float(value[0]))} to {number(float(value[1]))}")
    return f"Correlation of forgetting with {plain}: {', '.join(said)} ({'; '.join(more)})."


def _numbers(known: Sequence[tuple[str, Forgetting]], *, many: bool) -> Table:
    rows = tuple(
        words(
            f"{label}, {drop.earlier}" if many else drop.earlier,
            drop.later,
            change(None if drop.drop is None else -drop.drop),
            share(drop.collision_rate),
            measured(drop.overlap_energy),
        )
        for label, forgetting in known
        for drop in _worst_first(forgetting.pairs)
    )
    columns = ("earlier task", "when learning", "change, points", "collision rate", "overlap energy")
    return Table("What learning a task did to each earlier one", columns, rows, words=frozenset({0, 1}))


def _worst_first(drops: Sequence[Drop]) -> list[Drop]:
    return sorted(drops, key=lambda drop: -(drop.drop if drop.drop is not None else float("-inf")))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
