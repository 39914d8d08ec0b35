"""The runs of a page by variant: runs that differ only in their seed are one variant, with one color."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from nlora.report.comparison import Spread
from nlora.report.grouping import grouped
from nlora.report.run_files import RunFiles
from nlora.runs.summary import Summary


@dataclass(frozen=True, slots=True)
class Variant:
    """One or more runs, one for each seed. label: unique on the page. order: gives the color."""

    label: str
    order: int
    runs: tuple[RunFiles, ...]

    @property
    def first(self) -> RunFiles:
        """The run of the lowest seed, with the variant's label: for what is shown of one run only."""
        return replace(self.runs[0], label=self.label)

    @property
    def has_seeds(self) -> bool:
        """Whether there is anything to average."""
        return len(self.runs) > 1

    @property
    def tasks(self) -> tuple[str, ...]:
        return self.runs[0].tasks

    @property
    def is_complete(self) -> bool:
        return self.runs[0].is_complete

    @property
    def summaries(self) -> list[Summary]:
        return [run.summary for run in self.runs]

    def scores(self, stage: int, task: int) -> tuple[float, ...]:
        """The entries of the runs' matrices, by seed; empty if they have none. Both are counted from 0."""
        known = [run.summary.R[stage][task] for run in self.runs]
        scores = tuple(score for score in known if score is not None)
        return scores if len(scores) == len(known) else ()

    def mean_matrix(self) -> tuple[tuple[float | None, ...], ...]:
        """The mean over the seeds of each entry of R."""
        size = range(len(self.tasks))
        return tuple(tuple(mean_of(self.scores(k, i)) for i in size) for k in size)


def mean_of(values: Sequence[float]) -> float | None:
    """None for no values."""
    return Spread.of(values).mean if values else None


def variants_of(runs: Sequence[RunFiles]) -> list[Variant]:
    """In the order in which they first appear; their runs have the variant's color, and are sorted by seed."""
    by_folder = {run.folder: run for run in runs}
    groups = [
        sorted((by_folder[folder] for folder, _ in group), key=lambda run: run.summary.seed)
        for group in grouped((run.folder, run.summary) for run in runs)
    ]
    names = Counter(group[0].summary.name for group in groups if group[0].is_complete)
    several = any(len(group) > 1 for group in groups)
    variants = []
    for order, group in enumerate(groups):
        name = group[0].summary.name
        # An unfinished run's label may be the name of a folder.
        is_free = all(run.label != name or run in group for run in runs)
        is_named = several and names[name] == 1 and group[0].is_complete and is_free
        label = name if is_named else group[0].label
        if len(group) > 1 and not is_named:  # the label of one of its runs names a seed
            label = f"{name} in {group[0].folder}"
        variants.append(Variant(label, order, tuple(replace(run, order=order) for run in group)))
    return variants


def runs_of(variants: Sequence[Variant]) -> list[RunFiles]:
    """All runs, those of a variant together."""
    return [run for variant in variants for run in variant.runs]


def labeled(variants: Sequence[Variant]) -> list[tuple[str, list[Summary]]]:
    """As notes on differences take them."""
    return [(variant.label, variant.summaries) for variant in variants]


def seeds_in_words(variants: Sequence[Variant]) -> str:
    """`15 runs: 3 variants, each with 5 seeds`."""
    runs = sum(len(variant.runs) for variant in variants)
    counts = sorted({len(variant.runs) for variant in variants})
    if counts == [1]:
        return "One run" if runs == 1 else f"{runs} runs side by side"
    seeds = f"{counts[0]} seeds" if len(counts) == 1 else f"{counts[0]} to {counts[-1]} seeds"
    if len(variants) == 1:
        return f"{runs} runs that differ only in their seed"
    return f"{runs} runs: {len(variants)} variants, each with {seeds}"
