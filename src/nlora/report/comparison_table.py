"""A comparison of runs for people: the columns, the text of each cell, and the table for a terminal.

Measures that no row has are left out. A narrow terminal gets several tables; no number is ever truncated. The other
formats are in `comparison_formats`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from nlora.report.comparison import Comparison, Row, Spread, shows_preparing
from nlora.report.formatting import change, duration, memory, score

AVERAGE = "average_accuracy"
"""The measure whose best value is marked."""
PREPARING = "prepare_seconds"
"""The measure that is shown only where it takes long."""
DIFFERENCE = "difference"
"""The column of differences to the base."""
LABEL_WIDTHS = (40, 24, 16)
"""In characters; longer labels are folded. The first that fits everything in one table is used."""


@dataclass(frozen=True, slots=True)
class Column:
    """A measure as people read it. note: its meaning, shown under the table."""

    key: str
    heading: str
    shown: Callable[[Spread], str]
    note: str


def _score(spread: Spread) -> str:
    return score(spread.mean) + _deviation(spread)


def _change(spread: Spread) -> str:
    return change(spread.mean) + _deviation(spread)


def _deviation(spread: Spread) -> str:
    # No space before the number: a narrow column folds between mean and deviation.
    return "" if spread.deviation is None else f" ±{spread.deviation:.1f}"


COLUMNS = (
    Column(AVERAGE, "AA", _score, "AA: average accuracy, mean over all tasks after the last one."),
    Column("backward_transfer", "BWT", _change,
           "BWT: backward transfer, mean change on the earlier tasks since each was learned."),
    Column("forgetting", "forgetting", _score,
           "forgetting: mean drop on the earlier tasks from each one's best score before the end."),
    Column("forward_transfer", "FWT", _change,
           "FWT: forward transfer, mean gain on the later tasks before each was learned."),
    Column("collision_rate", "collision", _score, ""),  # the comparison has a note with the threshold
    Column("perplexity_change", "perplexity", lambda s: f"{_change(s)} %",
           "perplexity: change on plain text from before the first to after the last task; higher is worse."),
    Column("trained_parameters", "trained", lambda s: f"{s.mean:,.0f}", "trained: parameters per task."),
    Column("train_seconds", "training", lambda s: duration(s.mean),
           "training: time for all tasks, without preparing and scoring; mean over seeds."),
    Column(PREPARING, "preparing", lambda s: duration(s.mean),
           "preparing: what the method, or a router, does before and after training; mean over seeds."),
    Column("peak_memory_bytes", "memory", lambda s: memory(s.mean), "memory: peak during training; mean over seeds."),
)  # fmt: skip


DIFFERENCE_NOTE = (
    "mean difference in average accuracy over the same seeds and test examples; in brackets the middle 95 % of a "
    "bootstrap over both (with one seed over the test examples only, so it is too narrow). "
    "Without 0 in it, the two differ at the 5 % level, not corrected for the number of rows."
)


class ComparisonView:
    """The comparison for a terminal of any width."""

    def __init__(self, comparison: Comparison) -> None:
        self.comparison = comparison

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        columns = shown_columns(self.comparison)
        for i, table in enumerate(self._tables(columns, console, options)):
            if i:
                yield Text("")
            yield table
        for note in notes_of(self.comparison, columns):
            yield Text(note)

    def _tables(self, columns: Sequence[Column], console: Console, options: ConsoleOptions) -> list[Table]:
        """One table if it fits, else several with as many columns as fit, and at least one."""
        unlimited = options.update_width(10_000)

        def fits(some: Sequence[Column], label_width: int) -> bool:
            table = self._table(some, label_width)
            return Measurement.get(console, unlimited, table).maximum <= options.max_width

        for label_width in LABEL_WIDTHS:
            if fits(columns, label_width):
                return [self._table(columns, label_width)]
        groups: list[list[Column]] = [[]]
        for column in columns:
            if groups[-1] and not fits([*groups[-1], column], LABEL_WIDTHS[1]):
                groups.append([])
            groups[-1].append(column)
        return [self._table(group, LABEL_WIDTHS[1]) for group in groups]

    def _table(self, columns: Sequence[Column], label_width: int) -> Table:
        table = Table(box=box.SIMPLE, padding=(0, 1), show_edge=False)
        table.add_column("run", overflow="fold", max_width=label_width)
        table.add_column("seeds", justify="right")
        for column in columns:
            table.add_column(Text(column.heading), justify="right", no_wrap=True)
        best = {id(row) for row in best_rows(self.comparison)}
        for rows in (self.comparison.rows, self.comparison.published):
            for row in rows:
                cells = [_terminal_cell(row, column, best) for column in columns]
                table.add_row(Text(label_of(row)), seeds_of(row), *cells)
            table.add_section()
        return table


def shown_columns(comparison: Comparison) -> list[Column]:
    """The measures that any row has, preparing only where it takes long, and the difference to the base."""
    rows = (*comparison.rows, *comparison.published)
    columns = [column for column in COLUMNS if any(column.key in row.values for row in rows)]
    times = [row.values for row in rows if row.values.keys() >= {PREPARING, "train_seconds"}]
    if not shows_preparing((found[PREPARING].mean, found["train_seconds"].mean) for found in times):
        columns = [column for column in columns if column.key != PREPARING]
    if comparison.base is not None:
        heading = f"minus {comparison.base}"
        columns.insert(1, Column(DIFFERENCE, heading, _change, f"{heading}: {DIFFERENCE_NOTE}"))
    return columns


def notes_of(comparison: Comparison, columns: Sequence[Column]) -> list[str]:
    """The notes under the table, in every format."""
    notes = [column.note for column in columns if column.note]
    if any(spread.deviation is not None for row in comparison.rows for spread in row.values.values()):
        notes.append("±: sample standard deviation over the seeds.")
    return [*notes, *comparison.notes, *comparison.sources]


def best_rows(comparison: Comparison) -> list[Row]:
    """The finished rows with the highest average accuracy as shown; none if the rows are not comparable."""
    rows = [row for row in comparison.rows if AVERAGE in row.values]
    if len(rows) < 2 or not comparison.compares:
        return []
    best = max(row.values[AVERAGE].mean for row in rows)
    return [row for row in rows if score(row.values[AVERAGE].mean) == score(best)]


def label_of(row: Row) -> str:
    """The row's label, with the progress of an unfinished run."""
    if row.status in ("running", "stopped"):
        so_far = f"{row.learned} of {len(row.tasks)} tasks"
        return f"{row.label}, " + (
            f"running: {so_far}" if row.status == "running" else f"stopped after {so_far}"
        )
    return row.label


def seeds_of(row: Row) -> str:
    """As `seeds_in_short`; empty for published numbers, whose seeds are unknown."""
    return seeds_in_short(row.seeds)


def seeds_in_short(seeds: Sequence[int]) -> str:
    """`1-3` or `1, 2, 5`, of seeds in order."""
    if len(seeds) > 2 and all(after == before + 1 for before, after in pairwise(seeds)):
        return f"{seeds[0]}-{seeds[-1]}"
    return ", ".join(map(str, seeds))


def cell_of(row: Row, column: Column) -> str:
    """`61.8 ±3.2`; empty if the row has no value."""
    if column.key == DIFFERENCE:
        return _difference(row)
    spread = row.values.get(column.key)
    if spread is None:
        return ""
    # Marks a mean over fewer seeds than the row has.
    fewer = f" (n={spread.count})" if row.seeds and spread.count < len(row.seeds) else ""
    return column.shown(spread) + fewer


def _difference(row: Row) -> str:
    """`+1.3 (-0.2 to +2.7)`."""
    found = row.minus_base
    if found is None:
        return ""
    ends = "" if found.interval is None else f" ({' to '.join(map(change, found.interval))})"
    fewer = f" (n={len(found.seeds)})" if len(found.seeds) < len(row.seeds) else ""
    return f"{change(found.mean)}{ends}{fewer}"


def _terminal_cell(row: Row, column: Column, best: Collection[int]) -> Text:
    """best: ids of the best rows."""
    text = cell_of(row, column)
    if column.key != AVERAGE or not best:
        return Text(text)
    return Text(f"{text}*", style="bold") if id(row) in best else Text(f"{text} ")
