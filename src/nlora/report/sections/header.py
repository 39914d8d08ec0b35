"""The title of a page, and the description of the runs under it."""

from __future__ import annotations

from collections.abc import Sequence

from nlora.report.page_blocks import Table, words
from nlora.report.variants import Variant
from nlora.report.wording import listed, run_facts

_LONGEST_TITLE = 70


def title_of(variants: Sequence[Variant]) -> str:
    """The variants' names, or how many there are."""
    names = listed([variant.label for variant in variants])
    if len(variants) == 1 or len(names) <= _LONGEST_TITLE:
        return names
    return f"{len(variants)} {'variants' if any(v.has_seeds for v in variants) else 'runs'}"


def facts_and_differences(variants: Sequence[Variant]) -> tuple[list[tuple[str, str]], Table | None]:
    """The facts that all variants share, and a table of those that differ (None for a single one)."""
    many = any(variant.has_seeds for variant in variants)
    facts = [_facts(variant, many) for variant in variants]
    names = list(dict.fromkeys(name for each in facts for name in each))
    same = [(name, facts[0][name]) for name in names if len({each.get(name) for each in facts}) == 1]
    if len(variants) == 1:
        return same, None
    unlike = [name for name in names if len({each.get(name) for each in facts}) > 1]
    rows = tuple(
        words(variant.label, *(each.get(name, "–") for name in unlike))
        for variant, each in zip(variants, facts, strict=True)
    )
    columns = ("run", *(name.lower() for name in unlike))
    return same, Table("Where the runs differ", columns, rows, words=frozenset(range(len(columns))))


def _facts(variant: Variant, many: bool) -> dict[str, str]:
    facts = dict(run_facts(variant.first))
    if many:
        seeds = facts.pop("Seed"), *(str(run.summary.seed) for run in variant.runs[1:])
        facts["Seeds"] = ", ".join(seeds)
    return facts
