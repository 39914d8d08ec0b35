"""The section about the updates: where they collide, how large they are, and how that relates to forgetting.

All numbers come from analysis.json (`nlora analyze`); only means over pairs, layers and adapters are computed here.
"""

from __future__ import annotations

from collections.abc import Sequence

from nlora.report.charts.axes import number
from nlora.report.charts.heatmap import heat_map, scale_position
from nlora.report.charts.palette import heat_role
from nlora.report.charts.scene import Scene
from nlora.report.page_blocks import (
    MOST_LISTED,
    Block,
    Cell,
    Figure,
    Pair,
    Section,
    Tab,
    Table,
    Tabs,
    Text,
    side_by_side,
    words,
)
from nlora.report.paper_figures import averages_figure
from nlora.report.run_files import Analyzed, RunFiles, analyzed
from nlora.report.sections.collision_vs_forgetting import drop_blocks
from nlora.report.sections.modules import kind_figures, layer_figures, nuclear_norms
from nlora.report.sections.thresholds import threshold_figures
from nlora.report.wording import analyze_command, measured, share, trains
from nlora.runs.interference_file import Interference


def collisions(runs: Sequence[RunFiles]) -> Section:
    """Collisions by pair, layer, kind and threshold; nuclear norms; collision against forgetting."""
    about = (
        "Two updates collide at a weight if both change it by more than the threshold. Their collision rate is the "
        "share of weights where they collide."
    )
    compared = analyzed(runs)
    missing = [run for run in runs if run.interference is None]
    blocks: list[Block] = []
    for run in missing:
        what = f"{run.label}: t" if len(runs) > 1 else "T"
        if trains(run) != "adapter":
            text = f"{what}he method trains no adapters, so there are no updates to compare."
            blocks.append(Text(text, tone="note"))
            continue
        text = f"{what}he updates have not been compared yet. Run this command, then write the report again:"
        blocks.append(Text(text, tone="note", code=analyze_command(run)))
    if compared:
        blocks += _thresholds(compared, many=len(runs) > 1)
        if len(compared) > 1:
            blocks.append(Pair(tuple(averages_figure(compared))))
        blocks.append(
            Tabs("collision-tabs", "Views of the collisions", tuple(_tabs(compared, many=len(runs) > 1)))
        )
        blocks += drop_blocks(compared, many=len(runs) > 1)
    return Section("collisions", "Collisions", about, blocks)


def _thresholds(compared: Analyzed, *, many: bool) -> list[Block]:
    if many:
        return [_threshold_table(compared)]
    found = compared[0][1]
    if not found.pairs:
        return [Text(" ".join(["There is one update, so there are no pairs to compare.", *found.notes]))]
    rule = f" ({found.threshold_rule})" if found.threshold_rule else ""
    rate, threshold = share(found.average_collision_rate), number(found.threshold)
    text = f"The average over all pairs is {rate}, at the threshold {threshold}{rule}."
    return [Text(" ".join([text, *found.notes]))]


def _threshold_table(compared: Analyzed) -> Table:
    rows = tuple(
        words(run.label, share(found.average_collision_rate), number(found.threshold))
        for run, found in compared
    )
    rules = [found.threshold_rule for _, found in compared if found.threshold_rule]
    texts = dict.fromkeys(
        [
            *(f"Threshold: {rule}" for rule in rules),
            *(f"{r.label}: {note}" for r, m in compared for note in m.notes),
        ]
    )
    columns = ("run", "average collision rate", "threshold")
    if len({found.threshold for _, found in compared}) > 1:
        texts["Each run has its own threshold; the tab Threshold compares the runs at common ones"] = None
    return Table("Average over all pairs", columns, rows, " ".join(map(_sentence, texts)))


def _sentence(text: str) -> str:
    return f"{text.rstrip('.')}."


def _tabs(compared: Analyzed, *, many: bool) -> list[Tab]:
    known = [p.collision_rate for _, m in compared for p in m.pairs.values() if p.collision_rate is not None]
    high = max(known, default=1.0)  # one scale for all runs
    pairs = tuple(
        _pair_matrix(run, found, i, high, many=many) for i, (run, found) in enumerate(compared) if found.pairs
    )
    listed = compared if len(compared) <= MOST_LISTED else []
    panels: list[tuple[str, str, Sequence[Block | None]]] = [
        (
            "pairs",
            "By pair",
            [
                *side_by_side(pairs),
                *(_measures(run, found, many) for run, found in listed),
            ],
        ),
        ("layers", "By layer", layer_figures(compared)),
        ("kinds", "By kind of module", kind_figures(compared)),
        (
            "norms",
            "Nuclear norm",
            [nuclear_norms(compared), *(_adapters(run, found, many) for run, found in compared)],
        ),
        ("threshold", "Threshold", threshold_figures(compared)),
    ]
    tabs = []
    for key, title, found_blocks in panels:
        blocks = tuple(block for block in found_blocks if block is not None)
        if blocks:
            tabs.append(Tab(f"tab-{key}", title, blocks))
    return tabs


def _pair_matrix(run: RunFiles, found: Interference, index: int, high: float, *, many: bool) -> Figure:
    names = _names(run, found)
    rates = [
        [_rate(found, a, b) if j < i else None for j, b in enumerate(names[:-1])] for i, a in enumerate(names)
    ][1:]
    digits = 1 if len(names) <= 8 else 0
    title = f"Collision rate of {run.label}, %" if many else "Collision rate of each pair, %"

    def text(value: float) -> str:
        return f"{100 * value:.{digits}f}" if value >= 0.001 or value == 0 else number(100 * value)

    def draw(width: float) -> Scene:
        average = share(found.average_collision_rate)
        return heat_map(
            title,
            f"The average over the pairs is {average}.",
            rows=names[1:],
            columns=names[:-1],
            cells=rates,
            low=0.0,
            high=high,
            text=text,
            width=width,
            framed=lambda _row, _column: False,
        )

    rows = tuple(
        (
            Cell(name),
            *(
                Cell("")
                if rate is None
                else Cell(
                    text(rate), heat=heat_role(scale_position(rate, 0, high)), title=f"{100 * rate:.4g} %"
                )
                for rate in row
            ),
        )
        for name, row in zip(names[1:], rates, strict=True)
    )
    shown = Table(title, ("update", *names[:-1]), rows, kind="heat")
    return Figure(f"collision-pairs-{index + 1}", title, "", draw, shown=shown)


def _names(run: RunFiles, found: Interference) -> list[str]:
    """The compared tasks in the order of learning, then any other adapters."""
    if found.adapters:
        known = list(found.adapters)
    else:
        known = [task for task in run.tasks if any(found.pair(task, other) for other in run.tasks)]
    ordered = [task for task in run.tasks if task in known]
    return ordered + [name for name in known if name not in ordered]


def _rate(found: Interference, a: str, b: str) -> float | None:
    pair = found.pair(a, b)
    return None if pair is None else pair.collision_rate


def _measures(run: RunFiles, found: Interference, many: bool) -> Table | None:
    """Every measure of every pair."""
    columns = (
        "collision rate",
        "opposite signs",
        "overlap energy",
        "Σ‖A·Aᵀ‖²",
        "‖ΔWᵀΔW‖",
        "cosine",
        "row angle",
        "column angle",
    )
    rows = []
    names = _names(run, found)
    for j, b in enumerate(names):
        for a in names[:j]:
            pair = found.pair(a, b)
            if pair is not None:
                rows.append(
                    words(
                        f"{a}, {b}",
                        share(pair.collision_rate),
                        share(pair.sign_conflict),
                        measured(pair.overlap_energy),
                        measured(pair.orthogonality),
                        measured(pair.update_orthogonality),
                        measured(pair.cosine),
                        _angle(pair.row_angle_degrees),
                        _angle(pair.column_angle_degrees),
                    )
                )
    if not rows or not any(pair.overlap_energy is not None for pair in found.pairs.values()):
        return None
    note = (
        "Opposite signs: the share of colliding entries where the two updates have opposite signs. Overlap energy: "
        "Σ|ΔWᵢ||ΔWⱼ| / (‖ΔWᵢ‖‖ΔWⱼ‖), which needs no threshold. Σ‖A·Aᵀ‖²: O-LoRA's orthogonality, 0 if the rows of the "
        "factors A are orthogonal. ‖ΔWᵀΔW‖: 0 if the updates write to orthogonal outputs. Cosine: of the two updates, "
        "as vectors of all their entries. Angles: the smallest principal angle between the row or column spaces."
    )
    caption = f"All measures of each pair of {run.label}" if many else "All measures of each pair"
    return Table(caption, ("pair", *columns), tuple(rows), note, is_aside=many)


def _adapters(run: RunFiles, found: Interference, many: bool) -> Table | None:
    if not found.adapters:
        return None
    rows = tuple(
        words(
            name,
            share(facts.density),
            measured(facts.nuclear_norm),
            measured(facts.stable_rank),
            measured(facts.effective_rank),
            measured(facts.l1),
            measured(facts.frobenius),
        )
        for name, facts in found.adapters.items()
    )
    columns = (
        "update",
        "density",
        "nuclear norm",
        "stable rank",
        "effective rank",
        "L1 norm",
        "Frobenius norm",
    )
    note = "Density: the share of entries above the threshold. Nuclear norm and ranks are means over the modules."
    caption = f"Each update of {run.label}" if many else "Each update"
    return Table(caption, columns, rows, note, is_aside=many)


def _angle(degrees: float | None) -> str:
    return "–" if degrees is None else f"{degrees:.1f}°"
