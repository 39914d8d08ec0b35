"""A comparison as tables for a terminal of 80 columns.

Console().print(comparison_tables(comparison.to_json()))
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from nlora.analysis.pair_measures import Floats

MOST_NAMED_COLUMNS = 6
"""Up to so many adapters the columns of the matrix carry names; with more, numbers that the rows explain."""
MOST_WITH_DIGITS = 9
"""Up to so many, percentages have a decimal."""
_NAME_WIDTH = 19


def comparison_tables(values: Mapping[str, Any]) -> RenderableType:
    """values: the JSON of a comparison, or of a run's (with `forgetting`)."""
    parts: list[RenderableType] = [_adapters(values["adapters"])]
    if values["pairs"]:
        parts += [
            Padding(_matrix(list(values["adapters"]), values["pairs"]), (1, 0, 0, 0)),
            *_summary(values),
        ]
    parts += [Text(f"threshold {values['threshold']:.3g}: {values['threshold_rule']}")]
    parts += [Text(line) for line in _forgetting(values.get("forgetting"))]
    parts += [Text(f"note: {note}") for note in values["notes"]]
    return Group(*parts)


def _adapters(adapters: Mapping[str, Mapping[str, float | None]]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("adapter", overflow="fold")
    columns = ("density", "nuclear norm", "effective rank", "RMS entry")
    for heading in columns:
        table.add_column(heading, justify="right", no_wrap=True)
    for number, (name, own) in enumerate(adapters.items(), start=1):
        table.add_row(
            Text(f"{number} {name}"),
            _percent(own["density"], 1),
            f"{own['nuclear_norm']:.3g}",
            f"{own['effective_rank']:.2f}",
            f"{own['rms']:.2g}",
        )
    return table


def _matrix(names: Sequence[str], pairs: Mapping[str, Mapping[str, float | None]]) -> Table:
    """Collision rates in percent, each pair once, above the diagonal."""
    named = len(names) <= MOST_NAMED_COLUMNS
    digits = 1 if len(names) <= MOST_WITH_DIGITS else 0
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("collision rate, %", no_wrap=True, overflow="ellipsis")
    for number, name in enumerate(names[1:], start=2):
        table.add_column(
            Text(name if named else str(number)), justify="right", overflow="fold", no_wrap=not named
        )
    rates = {key: own["collision_rate"] for key, own in pairs.items()}
    for i, name in enumerate(names[:-1]):
        cells = [
            "" if j <= i else _percent(rates[f"{name}|{names[j]}"], digits).removesuffix(" %")
            for j in range(1, len(names))
        ]
        table.add_row(_row_name(f"{i + 1} {name}"), *cells)
    return table


def _summary(values: Mapping[str, Any]) -> Iterator[Text]:
    pairs = values["pairs"].values()
    count = f"{len(pairs)} pair{'s' if len(pairs) > 1 else ''}"
    chance = sum(own["chance_rate"] for own in pairs) / len(pairs)
    yield Text(
        f"average collision rate {_percent(values['average_collision_rate'], 2)}, mean over {count}; "
        f"by chance {_percent(chance, 2)}",
        style="bold",
    )
    for key, what in (
        ("overlap_energy", "overlap energy {:.3f} (needs no threshold; 0 apart, 1 the same)"),
        ("sign_conflict", "sign conflict {:.3f} of the colliding entries (0.5 by chance)"),
        ("cosine", "cosine {:+.4f}"),
        ("orthogonality", "orthogonality Σ‖A_iA_jᵀ‖² {:.3g}"),
    ):
        known = [own[key] for own in pairs if own[key] is not None]
        if known:
            yield Text(f"mean {what.format(sum(known) / len(known))}")


def _forgetting(forgetting: Mapping[str, Any] | None) -> Iterator[str]:
    if forgetting is None:
        return
    for measure, found in forgetting["correlation"].items():
        name = measure.replace("_", " ")
        if found is None:
            yield f"{name} against forgetting: too few pairs with scores to say"
        else:
            low, high = found["pearson_interval_95"]
            yield (
                f"{name} against forgetting: r = {found['pearson']:+.2f} ({low:+.2f} to {high:+.2f}), "
                f"{found['n']} pairs, p = {found['p_permutation']:.2g}"
            )


def _percent(share: float | None, digits: int) -> str:
    return "-" if share is None else f"{100 * share:.{digits}f} %"


def _row_name(text: str) -> Text:
    return Text(text if len(text) <= _NAME_WIDTH else f"{text[: _NAME_WIDTH - 1]}…", no_wrap=True)


def csv_rows(values: Mapping[str, Any], by_module: Mapping[str, Floats]) -> list[list[Any]]:
    """Header and rows for a CSV file: each pair over all modules, then each pair at each module.

    by_module: each measure's values, (P, M), pairs in the order of `values["pairs"]`.
    """
    first: Mapping[str, Any] = next(iter(values["pairs"].values()), {})
    rows: list[list[Any]] = [["a", "b", "module", "layer", "kind", "entries", *first]]
    names = list(itertools.combinations(values["adapters"], 2))
    for (a, b), own in zip(names, values["pairs"].values(), strict=True):
        rows.append([a, b, "", "", "", "", *(("" if value is None else value) for value in own.values())])
    for p, (a, b) in enumerate(names):
        for m, module in enumerate(values["modules"]):
            cells = [by_module[measure][p, m] for measure in first]
            if cells[0] != cells[0]:  # NaN: one of both lacks the module
                continue
            place = module, values["layers"][m], values["kinds"][m], values["entries"][m]
            rows.append([a, b, *place, *("" if cell != cell else cell for cell in cells)])
    return rows
