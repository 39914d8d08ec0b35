"""The interference of adapters as tables for a terminal of 80 columns, and as rows for a CSV file."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from nlora.runs.interference_file import AdapterValues, Forgetting, Interference, PairValues

if TYPE_CHECKING:
    from nlora.analysis.measurements import Measurements

MOST_NAMED_COLUMNS = 6
"""Up to this many adapters the columns of the matrix carry names; beyond it, the numbers of the rows."""
MOST_WITH_DIGITS = 9
"""Up to this many adapters percentages have a decimal."""
_NAME_WIDTH = 19


def interference_tables(found: Interference) -> RenderableType:
    """The adapters, the matrix of collision rates, the means over pairs, and the notes."""
    parts: list[RenderableType] = [_adapters(found.adapters)]
    if found.pairs:
        parts += [Padding(_matrix(list(found.adapters), found.pairs), (1, 0, 0, 0)), *_averages(found)]
    parts += [Text(f"threshold {found.threshold:.3g}: {found.threshold_rule}")]
    parts += [Text(line) for line in _forgetting(found.forgetting)]
    parts += [Text(f"note: {note}") for note in found.notes]
    return Group(*parts)


def _adapters(adapters: Mapping[str, AdapterValues]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("adapter", overflow="fold")
    columns = ("density", "nuclear norm", "effective rank", "RMS entry")
    for heading in columns:
        table.add_column(heading, justify="right", no_wrap=True)
    for number, (name, own) in enumerate(adapters.items(), start=1):
        table.add_row(
            Text(f"{number} {name}"),
            _percent(own.density, 1),
            f"{own.nuclear_norm:.3g}",
            f"{own.effective_rank:.2f}",
            f"{own.rms:.2g}",
        )
    return table


def _matrix(names: Sequence[str], pairs: Mapping[str, PairValues]) -> Table:
    """Collision rates in percent, each pair once, above the diagonal."""
    named = len(names) <= MOST_NAMED_COLUMNS
    digits = 1 if len(names) <= MOST_WITH_DIGITS else 0
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("collision rate, %", no_wrap=True, overflow="ellipsis")
    for number, name in enumerate(names[1:], start=2):
        table.add_column(
            Text(name if named else str(number)), justify="right", overflow="fold", no_wrap=not named
        )
    for i, name in enumerate(names[:-1]):
        cells = [
            "" if j <= i else _percent(pairs[f"{name}|{names[j]}"].collision_rate, digits).removesuffix(" %")
            for j in range(1, len(names))
        ]
        table.add_row(_row_name(f"{i + 1} {name}"), *cells)
    return table


def _averages(found: Interference) -> Iterator[Text]:
    pairs = list(found.pairs.values())
    count = f"{len(pairs)} pair{'s' if len(pairs) > 1 else ''}"
    chance = _mean(pairs, "chance_rate")
    yield Text(
        f"average collision rate {_percent(found.average_collision_rate, 2)}, mean over {count}; "
        f"by chance {_percent(chance, 2)}",
        style="bold",
    )
    for measure, text in (
        ("overlap_energy", "overlap energy {:.3f} (needs no threshold; 0 disjoint, 1 equal magnitudes)"),
        ("sign_conflict", "sign conflict {:.3f} of the colliding entries (0.5 by chance)"),
        ("cosine", "cosine {:+.4f}"),
        ("orthogonality", "orthogonality Σ‖A_iA_jᵀ‖² {:.3g}"),
    ):
        mean = _mean(pairs, measure)
        if mean is not None:
            yield Text(f"mean {text.format(mean)}")


def _mean(pairs: Sequence[PairValues], measure: str) -> float | None:
    """Over the pairs where the measure is defined."""
    known = [value for own in pairs if (value := getattr(own, measure)) is not None]
    return sum(known) / len(known) if known else None


def _forgetting(forgetting: Forgetting | None) -> Iterator[str]:
    if forgetting is None:
        return
    for measure, found in forgetting.correlation.items():
        name = measure.replace("_", " ")
        if found is None or found.pearson_interval_95 is None:
            yield f"{name} against forgetting: too few pairs with scores to tell"
        else:
            low, high = found.pearson_interval_95
            yield (
                f"{name} against forgetting: r = {found.pearson:+.2f} ({low:+.2f} to {high:+.2f}), "
                f"{found.n} pairs, p = {found.p_permutation:.2g}"
            )


def _percent(share: float | None, digits: int) -> str:
    return "-" if share is None else f"{100 * share:.{digits}f} %"


def _row_name(text: str) -> Text:
    return Text(text if len(text) <= _NAME_WIDTH else f"{text[: _NAME_WIDTH - 1]}…", no_wrap=True)


def csv_rows(measured: Measurements) -> list[list[Any]]:
    """Header and rows for a CSV file: each pair over all modules, then each pair at each module."""
    overall, by_module = measured.pair_measures(), measured.module_measures()
    rows: list[list[Any]] = [["a", "b", "module", "layer", "kind", "entries", *overall]]
    pairs = measured.name_pairs
    for p, pair in enumerate(pairs):
        rows.append([*pair, "", "", "", "", *(_cell(values[p]) for values in overall.values())])
    for p, pair in enumerate(pairs):
        for m, module in enumerate(measured.modules):
            cells = [values[p, m] for values in by_module.values()]
            if math.isnan(cells[0]):  # one of the two lacks the module
                continue
            layer = "" if measured.layers[m] is None else measured.layers[m]
            place = module, layer, measured.kinds[m], int(measured.entries[m])
            rows.append([*pair, *place, *map(_cell, cells)])
    return rows


def _cell(value: float) -> float | str:
    return "" if math.isnan(value) else float(value)
