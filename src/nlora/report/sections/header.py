"""The title of a page, and the description of the runs under it."""

from __future__ import annotations

from collections.abc import Sequence

from nlora.report.page_blocks import Table, words
from nlora.report.variants import Variant
from nlora.report.wording import listed, run_facts, setting
from nlora.runs.run_changes import FREE
from nlora.runs.run_yaml import flat

_LONGEST_TITLE = 70
_IN_FACTS = frozenset(
    {
        *(
            "name",
            "seed",
            "output_dir",
            "model",
            "tasks",
            "method",
            "replay",
            "serve",
            "router.reads",
            "protocol",
        ),
        *("lora.r", "lora.alpha", "lora.dropout", "lora.targets", "dtype", "quantize"),
        *("train.epochs", "train.batch_size", "train.learning_rate", "evaluate.split", "evaluate.decode"),
    }
)
"""Keys of the configuration that `run_facts` tells, with all keys below them."""


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
    settings = [_settings(variant) for variant in variants]
    keys = dict.fromkeys(key for each in settings for key in each)
    unlike_keys = [key for key in keys if len({each.get(key) for each in settings}) > 1]
    rows = tuple(
        words(
            variant.label,
            *(each.get(name, "–") for name in unlike),
            *(own.get(key, "–") for key in unlike_keys),
        )
        for variant, each, own in zip(variants, facts, settings, strict=True)
    )
    columns = ("run", *(name.lower() for name in unlike), *unlike_keys)
    return same, Table("Where the runs differ", columns, rows, words=frozenset(range(len(columns))))


def _facts(variant: Variant, many: bool) -> dict[str, str]:
    facts = dict(run_facts(variant.first))
    if many:
        seeds = facts.pop("Seed"), *(str(run.summary.seed) for run in variant.runs[1:])
        facts["Seeds"] = ", ".join(seeds)
    return facts


def _settings(variant: Variant) -> dict[str, str]:
    """What else its configuration says of updates and scores, by dotted key; empty if it is of another version."""
    config = variant.first.config
    values = {} if config is None else flat(config.model_dump(mode="json"))
    return {
        ".".join(map(str, key)): setting(value)
        for key, value in values.items()
        if value != {}
        and not any(".".join(map(str, key[:depth])) in _IN_FACTS | FREE for depth in range(1, len(key) + 1))
    }
