"""The title of a page, and the description of the runs under it."""

from __future__ import annotations

from collections.abc import Sequence

from nlora.report.page_blocks import Table, words
from nlora.report.run_files import RunFiles
from nlora.report.wording import listed, run_facts

_LONGEST_TITLE = 70


def title_of(runs: Sequence[RunFiles]) -> str:
    """The runs' names, or how many there are."""
    names = listed([run.label for run in runs])
    return names if len(runs) == 1 or len(names) <= _LONGEST_TITLE else f"{len(runs)} runs"


def facts_and_differences(runs: Sequence[RunFiles]) -> tuple[list[tuple[str, str]], Table | None]:
    """The facts that all runs share, and a table of those that differ (None for a single run)."""
    facts = [dict(run_facts(run)) for run in runs]
    names = list(dict.fromkeys(name for each in facts for name in each))
    same = [(name, facts[0][name]) for name in names if len({each.get(name) for each in facts}) == 1]
    if len(runs) == 1:
        return same, None
    unlike = [name for name in names if len({each.get(name) for each in facts}) > 1]
    rows = tuple(
        words(run.label, *(each.get(name, "–") for name in unlike))
        for run, each in zip(runs, facts, strict=True)
    )
    columns = ("run", *(name.lower() for name in unlike))
    return same, Table("Where the runs differ", columns, rows, words=frozenset(range(len(columns))))
