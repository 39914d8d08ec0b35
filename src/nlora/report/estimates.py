"""Scores with their 95 % intervals: over the seeds if there are several, else over the test examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nlora.evaluation.answer import Answer
from nlora.evaluation.intervals import Interval, middle_of, score_draws, score_interval, t_interval, wilson
from nlora.report.comparison import Spread
from nlora.report.run_files import RunFiles
from nlora.report.variants import Variant
from nlora.report.wording import score
from nlora.runs.answers import read_answers
from nlora.runs.paired_bootstrap import Answers

LastAnswers = Mapping[str, Answers]
"""The answers after each run's last finished stage, by the run's folder as text and by task."""


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


def last_answers_of(runs: Sequence[RunFiles]) -> LastAnswers:
    """Read once for the whole page."""
    found = {}
    for run in runs:
        last = run.stages[-1].predictions if run.stages else None
        found[str(run.folder)] = {} if last is None else read_answers(last, run.tasks)
    return found


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


def task_estimate(variant: Variant, stage: int, task: int, answers: LastAnswers) -> Estimate | None:
    """The score of a task after a stage, both counted from 0; None if it was not scored."""
    values = variant.scores(stage, task)
    if not values:
        return None
    run, name = variant.runs[0], variant.tasks[task]
    found = answers[str(run.folder)].get(name, {})
    count = _examples(run, name, len(found))
    if variant.has_seeds:
        interval = within_percent(t_interval(values))
    elif run.summary.metric_of(name) == "exact_match":
        interval = None if not count else wilson(values[0] * count / 100, count)
    else:
        then = list(found.values()) if stage == len(run.stages) - 1 else _answers_then(run, stage, name)
        interval = score_interval(then, run.summary.metric_of(name))
    return Estimate(Spread.of(values), values, interval, count)


def average_estimate(variant: Variant, answers: LastAnswers) -> Estimate | None:
    """The average accuracy of finished runs; None of unfinished ones."""
    values = tuple(s.average_accuracy for s in variant.summaries if s.average_accuracy is not None)
    if not values or not variant.is_complete:
        return None
    found = answers[str(variant.runs[0].folder)]
    sizes = [len(of_task) for of_task in found.values()]
    known = bool(sizes) and all(sizes)
    if variant.has_seeds:
        interval = within_percent(t_interval(values))
    elif known:
        summary = variant.runs[0].summary
        draws = [
            score_draws(list(of_task.values()), summary.metric_of(task), seed=i)
            for i, (task, of_task) in enumerate(found.items())
        ]
        interval = middle_of(np.mean(draws, axis=0))
    else:
        interval = None
    return Estimate(Spread.of(values), values, interval, sum(sizes) if known else None)


def _examples(run: RunFiles, task: str, answered: int) -> int | None:
    digests = run.summary.digests.get(task)
    return answered or (None if digests is None else digests.test.count)


def _answers_then(run: RunFiles, stage: int, task: str) -> list[Answer]:
    path = run.stages[stage].predictions if stage < len(run.stages) else None
    return [] if path is None else list(read_answers(path, [task])[task].values())
