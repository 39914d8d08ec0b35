"""The variants of a page compared: average accuracy with intervals, and the differences to one of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nlora.errors import InputErrors, Problem, did_you_mean
from nlora.report.charts.axes import linear_axis
from nlora.report.charts.intervals import IntervalRow, interval_chart
from nlora.report.charts.palette import series_role
from nlora.report.charts.scene import Scene
from nlora.report.comparison_notes import scoring_notes
from nlora.report.comparison_table import DIFFERENCE_NOTE
from nlora.report.estimates import Estimate, PageAnswers, about_intervals, average_estimate, ends
from nlora.report.page_blocks import Figure, Table, words
from nlora.report.variants import Variant, labeled
from nlora.report.wording import change, score
from nlora.runs.paired_bootstrap import Difference, difference, scored


@dataclass(frozen=True, slots=True)
class Compared:
    """estimates: the average accuracy of each finished variant by its label, best first.

    base: the label of what the others are compared with; None if nothing is compared.
    differences: to the base, by label.
    comparable: whether the best average accuracy means anything.
    """

    variants: tuple[Variant, ...]
    estimates: Mapping[str, Estimate]
    base: str | None
    differences: Mapping[str, Difference]
    comparable: bool


def compared(variants: Sequence[Variant], answers: PageAnswers, base: str | None = None) -> Compared:
    """base: a label; None: the finished variant named inclora, else the first finished one.

    Raises InputErrors if no finished variant has the base's label.
    """
    known = [(v, e) for v in variants if (e := average_estimate(v, answers)) is not None]
    estimates = {v.label: e for v, e in sorted(known, key=lambda pair: -pair[1].mean)}
    same_tasks = len({frozenset(variant.tasks) for variant in variants}) == 1
    comparable = bool(estimates) and same_tasks and scoring_notes(labeled(variants))[1]
    finished = [v for v in variants if v.is_complete]
    chosen = _base(finished, base)
    if chosen is None or len(finished) < 2 or not (comparable or base):
        return Compared(tuple(variants), estimates, None, {}, comparable)
    runs = {v.label: [scored(r.summary, answers.last(r)) for r in v.runs] for v in finished}
    found = {
        label: difference(mine, runs[chosen.label]) for label, mine in runs.items() if label != chosen.label
    }
    differences = {label: each for label, each in found.items() if each is not None}
    return Compared(tuple(variants), estimates, chosen.label, differences, comparable)


def _base(finished: Sequence[Variant], label: str | None) -> Variant | None:
    by_label = {variant.label: variant for variant in finished}
    if label is None:
        return by_label.get("inclora", next(iter(finished), None))
    if label not in by_label:
        labels = ", ".join(by_label) or "none"
        what = (
            f"no finished run on the page has this name; there are: {labels}{did_you_mean(label, by_label)}"
        )
        raise InputErrors([Problem(f"--base {label}", what)])
    return by_label[label]


def comparison_figures(found: Compared) -> list[Figure]:
    """Average accuracies if there are several or several seeds, and differences if there are any."""
    is_worth_it = len(found.estimates) > 1 or any(len(e.values) > 1 for e in found.estimates.values())
    figures = [_averages(found)] if is_worth_it else []
    return [*figures, _differences(found)] if found.differences else figures


def _averages(found: Compared) -> Figure:
    variants, estimates = found.variants, found.estimates
    roles = {variant.label: series_role(variant.order) for variant in variants}
    rows = [
        IntervalRow(
            label,
            e.mean,
            e.interval,
            e.text,
            roles[label],
            e.values if len(e.values) > 1 else (),
        )
        for label, e in estimates.items()
    ]
    seeds = " Small dots are single seeds." if any(row.single for row in rows) else ""
    numbers = Table(
        "Average accuracy with its interval",
        ("run", "average accuracy", "95 % interval", "n"),
        tuple(words(label, score(e.mean), ends(e.interval), e.count) for label, e in estimates.items()),
    )
    counts = dict.fromkeys(e.count for e in estimates.values())
    unit = f"%; n: {next(iter(counts))}" if len(counts) == 1 and "" not in counts else "%"
    return _figure(
        "final-average-accuracy",
        "Average accuracy",
        f"{about_intervals(variants)}{seeds}",
        unit,
        rows,
        numbers,
    )


def _differences(compared: Compared) -> Figure:
    variants, found, base = compared.variants, compared.differences, compared.base
    rows = [
        IntervalRow(
            variant.label,
            d.mean,
            d.interval,
            difference_words(d),
            series_role(variant.order),
        )
        for variant in variants
        if (d := found.get(variant.label)) is not None
    ]
    rows.sort(key=lambda row: -row.value)
    numbers = Table(
        f"Difference to {base}",
        ("run", "difference", "95 % interval", "seeds", "better in"),
        tuple(
            words(
                row.name,
                change(row.value),
                "–" if row.interval is None else " to ".join(map(change, row.interval)),
                len(found[row.name].seeds),
                f"{found[row.name].better} of {len(found[row.name].seeds)} seeds",
            )
            for row in rows
        ),
    )
    title = f"Difference to {base} in average accuracy"
    caption = f"{DIFFERENCE_NOTE[0].upper()}{DIFFERENCE_NOTE[1:]}"
    return _figure("difference", title, caption, "points of percent", rows, numbers, zero=True)


def difference_words(found: Difference) -> str:
    """`+1.3 (−0.2 to +2.7)`."""
    inside = "" if found.interval is None else f" ({' to '.join(map(change, found.interval))})"
    return f"{change(found.mean)}{inside}"


def _figure(
    key: str,
    title: str,
    caption: str,
    unit: str,
    rows: Sequence[IntervalRow],
    numbers: Table,
    *,
    zero: bool = False,
) -> Figure:
    values = [value for row in rows for value in (row.value, *(row.interval or ()), *row.single)]
    axis = linear_axis(unit, values, zero=zero)

    def draw(width: float) -> Scene:
        description = "; ".join(f"{row.name}: {row.text}" for row in rows)
        return interval_chart(title, description, rows, axis=axis, width=width)

    return Figure(key, title, caption, draw, numbers)
