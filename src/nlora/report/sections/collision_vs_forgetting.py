"""Collision against forgetting: one point per pair of tasks, and the correlation from analysis.json."""

from __future__ import annotations

from collections.abc import Sequence

from nlora.report.charts.axes import linear_axis
from nlora.report.charts.bars import Spot, scatter_chart
from nlora.report.charts.palette import series_role
from nlora.report.charts.scene import Scene
from nlora.report.page_blocks import MOST_LISTED, Block, Figure, Pair, Table, Text, words
from nlora.report.run_files import Analyzed, RunFiles
from nlora.report.wording import change, measured, share
from nlora.runs.interference_file import Correlation, Drop, Forgetting

Known = Sequence[tuple[RunFiles, Forgetting]]

_MEASURES = (("collision_rate", "collision rate, %", 100.0), ("overlap_energy", "overlap energy", 1.0))


def drop_blocks(runs: Analyzed, *, many: bool) -> list[Block]:
    """Scatter plots, correlations, and the numbers."""
    known = [(run, found.forgetting) for run, found in runs if found.forgetting is not None]
    if not any(forgetting.pairs for _, forgetting in known):
        return []
    figures = [f for name, axis, scale in _MEASURES if (f := _scatter(known, name, axis, scale)) is not None]
    blocks: list[Block] = [Pair(tuple(figures))] if len(figures) > 1 else list(figures)
    if any(found for _, forgetting in known for found in forgetting.correlation.values()):
        blocks.append(_correlations(known, many=many))
    if len(known) <= MOST_LISTED:
        blocks.append(_numbers(known, many=many))
    else:
        blocks.append(
            Text("With this many runs the list of pairs is left out; each run's analysis.json has it.")
        )
    return blocks


def _scatter(known: Known, name: str, axis: str, scale: float) -> Figure | None:
    spots = []
    for run, forgetting in known:
        role = series_role(run.order) if len(known) > 1 else "accent"
        for drop in forgetting.pairs:
            value: float | None = getattr(drop, name)
            if value is not None and drop.drop is not None:
                who = f"{run.label}: " if len(known) > 1 else ""
                on_hover = f"{who}learning {drop.later} cost {drop.earlier} {drop.drop:.1f} points"
                spots.append(Spot(scale * value, drop.drop, on_hover, role))
    if not spots:
        return None
    x = linear_axis(axis, [spot.x for spot in spots])
    y = linear_axis("points lost", [spot.y for spot in spots], zero=True)
    plain = axis.removesuffix(", %")
    names = [(run.label, series_role(run.order)) for run, forgetting in known if forgetting.pairs]

    def draw(width: float) -> Scene:
        description = (
            f"{len(spots)} pairs of tasks; horizontal: {axis}; vertical: points lost on the earlier task."
        )
        # On a wide page two of these are side by side.
        title = f"Forgetting against {plain}"
        return scatter_chart(title, description, spots, x=x, y=y, width=min(width, 420.0), names=names)

    caption = (
        "Each point is a pair of tasks: the points that the earlier one lost while the later one was learned."
    )
    key = f"forgetting-{name.replace('_', '-')}"
    return Figure(key, f"Forgetting against {plain}", caption, draw, fits_all=True)


def _correlations(known: Known, *, many: bool) -> Table:
    """One row for each run and measure."""
    rows = []
    for run, forgetting in known:
        for name, axis, _ in _MEASURES:
            plain = axis.removesuffix(", %")
            label = f"{run.label}, {plain}" if many else plain
            rows.append(words(label, *_correlation(forgetting.correlation.get(name))))
    columns = (
        "forgetting against",
        "Pearson",
        "Spearman",
        "95 % interval of Pearson",
        "p by permutation",
        "pairs",
    )
    note = (
        "Pairs that share a task are not independent: p is a lower bound, and the bootstrap interval is too narrow. "
        "A dash: fewer than four pairs, or constant values."
    )
    return Table("Is more collision associated with more forgetting?", columns, tuple(rows), note)


def _correlation(found: Correlation | None) -> tuple[str, ...]:
    if found is None:
        return ("–",) * 5
    ends = found.pearson_interval_95
    return (
        measured(found.pearson),
        measured(found.spearman),
        "–" if ends is None else f"{measured(ends[0])} to {measured(ends[1])}",
        measured(found.p_permutation),
        measured(found.n),
    )


def _numbers(known: Known, *, many: bool) -> Table:
    rows = tuple(
        words(
            f"{run.label}, {drop.earlier}" if many else drop.earlier,
            drop.later,
            change(None if drop.drop is None else -drop.drop),
            share(drop.collision_rate),
            measured(drop.overlap_energy),
        )
        for run, forgetting in known
        for drop in _worst_first(forgetting.pairs)
    )
    columns = ("earlier task", "when learning", "change, points", "collision rate", "overlap energy")
    return Table("Effect of learning a task on each earlier one", columns, rows, words=frozenset({0, 1}))


def _worst_first(drops: Sequence[Drop]) -> list[Drop]:
    return sorted(drops, key=lambda drop: -(drop.drop if drop.drop is not None else float("-inf")))
