"""Scores with their 95 % intervals: over the seeds if there are several, else over the test examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nlora.evaluation.answer import Answer
from nlora.evaluation.intervals import Interval, middle_of, score_draws, score_interval, t_interval, wilson
from nlora.report.comparison import Spread
from nlora.report.run_files import RunFiles, StageFiles
from nlora.report.variants import Variant
from nlora.report.wording import score
from nlora.runs.answers import read_answers
from nlora.runs.paired_bootstrap import Answers


@dataclass(frozen=True, slots=True)
class Estimate:
    """A score in percent. spread: over seeds. interval: None if unknown. examples: test examples, None if unknown."""

    spread: Spread
    values: tuple[float, ...]
    interval: Interval | None
    examples: int | None

    @property
    def mean(self) -> float:
        return self.spread.mean

    @property
    def text(self) -> str:
        """`61.8 (58.1 to 65.5)`."""
        return f"{score(self.mean)} ({ends(self.interval)})" if self.interval else score(self.mean)

    @property
    def count(self) -> str:
        """What n is: `5 seeds`, `100 examples`."""
        if len(self.values) > 1:
            return f"{len(self.values)} seeds"
        return "" if self.examples is None else f"{self.examples:,} examples"


class PageAnswers:
    """The answers of a page's runs, each file read once."""

    def __init__(self, runs: Sequence[RunFiles]) -> None:
        self._last = {run.folder: self._read(run.last, run.tasks) for run in runs}
        self._earlier: dict[tuple[Path, int], Answers] = {}

    def last(self, run: RunFiles) -> Answers:
        """After the last finished stage; empty if they are not known."""
        return self._last[run.folder]

    def then(self, run: RunFiles, stage: int, task: str) -> list[Answer]:
        """After a stage, counted from 0, to a task that is not scored by exact match."""
        there = run.stages[stage] if stage < len(run.stages) else None
        if there is run.last:
            return list(self.last(run).get(task, {}).values())
        key = (run.folder, stage)
        if key not in self._earlier:
            tasks = [name for name in run.tasks if run.summary.metric_of(name) != "exact_match"]
            self._earlier[key] = self._read(there, tasks)
        return list(self._earlier[key].get(task, {}).values())

    @staticmethod
    def _read(stage: StageFiles | None, tasks: Sequence[str]) -> Answers:
        path = None if stage is None else stage.predictions
        return {} if path is None else read_answers(path, tasks)


def about_intervals(variants: Sequence[Variant]) -> str:
    """What the intervals of these variants are."""
    over_seeds = (
        "Student's t interval of the mean over the seeds, which says nothing about other test examples"
    )
    over_examples = (
        "over the test examples, by Wilson's formula for shares of right answers, and by a bootstrap of 2,000 draws "
        "for other scores and for averages over tasks"
    )
    if all(variant.has_seeds for variant in variants):
        return f"95 % intervals: {over_seeds}."
    if not any(variant.has_seeds for variant in variants):
        return f"95 % intervals: {over_examples}."
    return f"95 % intervals. Of several seeds: {over_seeds}. Of one: {over_examples}."


def ends(interval: Interval | None) -> str:
    """`58.1 to 65.5`, or a dash."""
    return "–" if interval is None else f"{score(interval.low)} to {score(interval.high)}"


def within_percent(interval: Interval | None) -> Interval | None:
    """Cut at 0 and 100, which no score leaves."""
    return None if interval is None else Interval(max(interval.low, 0.0), min(interval.high, 100.0))


def with_width(interval: Interval | None) -> Interval | None:
    """None for one without width, of equal scores: it would say that other examples or seeds give no other score."""
    return interval if interval is not None and interval.low < interval.high else None


def task_estimate(variant: Variant, stage: int, task: int, answers: PageAnswers) -> Estimate | None:
    """The score of a task after a stage, both counted from 0; None if it was not scored."""
    values = variant.scores(stage, task)
    if not values:
        return None
    run, name = variant.runs[0], variant.tasks[task]
    found = answers.last(run).get(name, {})
    count = _examples(run, name, len(found))
    if variant.has_seeds:
        interval = within_percent(t_interval(values))
    elif run.summary.metric_of(name) == "exact_match":
        interval = None if not count else wilson(values[0] * count / 100, count)
    else:
        interval = score_interval(answers.then(run, stage, name), run.summary.metric_of(name))
    return Estimate(Spread.of(values), values, with_width(interval), count)


def average_estimate(variant: Variant, answers: PageAnswers) -> Estimate | None:
    """The average accuracy of finished runs; None of unfinished ones."""
    values = tuple(s.average_accuracy for s in variant.summaries if s.average_accuracy is not None)
    if not values or not variant.is_complete:
        return None
    summary, last = variant.runs[0].summary, answers.last(variant.runs[0])
    found = {task: last.get(task, {}) for task in summary.averaged}
    sizes = [len(of_task) for of_task in found.values()]
    known = bool(sizes) and all(sizes)
    if variant.has_seeds:
        interval = within_percent(t_interval(values))
    elif known and len(found) == 1:
        return task_estimate(variant, len(variant.tasks) - 1, summary.scored[0], answers)
    elif known:
        draws = [
            score_draws(list(of_task.values()), summary.metric_of(task), seed=i)
            for i, (task, of_task) in enumerate(found.items())
        ]
        interval = middle_of(np.mean(draws, axis=0))
    else:
        interval = None
    return Estimate(Spread.of(values), values, with_width(interval), sum(sizes) if known else None)


def _examples(run: RunFiles, task: str, answered: int) -> int | None:
    digests = run.summary.digests.get(task)
    return answered or (None if digests is None else digests.test.count)
