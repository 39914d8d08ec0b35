"""The difference in average accuracy between two variants, over the seeds that both have, with its 95 % interval.

A difference is paired: the same seeds, and in each of them the same test examples. The interval is the middle 95 % of
a bootstrap that draws seeds and test examples (2,000 draws). An example that several seeds are scored on is drawn for
all of them at once. With one seed it covers the test examples only, and is too narrow wherever runs of one method
differ. With two seeds or more it is rather too wide, unless they differ much (benchmarks/coverage.py).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nlora.evaluation.answer import Answer
from nlora.evaluation.intervals import DRAWS, Interval, middle_of
from nlora.runs.answers import ExampleKey, read_answers
from nlora.runs.layout import OUTPUTS, PREDICTIONS_FILE, stage_name
from nlora.runs.summary import Summary

Scores = Mapping[str, Mapping[str, float]]
"""The score of each test example of each task, 0 to 1. An example is known by its `example_digest`."""
Answers = Mapping[str, Mapping[ExampleKey, Answer]]


@dataclass(frozen=True, slots=True)
class Scored:
    """A finished run, and its last stage's score of each test example; None if they are not known."""

    summary: Summary
    scores: Scores | None


@dataclass(frozen=True, slots=True)
class Difference:
    """Points of percent. mean: over the seeds. better: seeds whose difference is above 0. interval: None if unknown."""

    mean: float
    interval: Interval | None
    seeds: tuple[int, ...]
    better: int


def example_digest(key: ExampleKey) -> str:
    """A name without the text. The bootstrap draws in its order, so its interval is the same wherever scores are kept.

    >>> example_digest(("7", "It is down again", "network", 0))
    '3bbb78fe49574084'
    """
    return hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]


def last_answers(folder: Path, summary: Summary) -> Answers:
    """The last stage's answers to all tasks; empty without the file. Raises RunError for a broken one."""
    path = folder / OUTPUTS / stage_name(len(summary.tasks), summary.tasks[-1]) / PREDICTIONS_FILE
    return read_answers(path, summary.tasks) if path.is_file() else {}


def scored(summary: Summary, answers: Answers) -> Scored:
    """With the scores, unless an answer is missing or a score is no mean over examples (macro-F1)."""
    tasks = summary.averaged
    known = all(answers.get(task) and summary.metric_of(task) != "macro_f1" for task in tasks)
    scores = {
        task: {example_digest(key): a.score(summary.metric_of(task)) for key, a in answers[task].items()}
        for task in (tasks if known else ())
    }
    return Scored(summary, scores or None)


def difference(runs: Sequence[Scored], others: Sequence[Scored]) -> Difference | None:
    """How much better `runs` are than `others`, finished runs with one per seed.

    None if they share no seed, or were answered or scored in another way or on other tasks or test examples.
    """
    mine, theirs = ({run.summary.seed: run for run in each} for each in (runs, others))
    seeds = tuple(sorted(mine.keys() & theirs.keys()))
    pairs = [(mine[seed], theirs[seed]) for seed in seeds]
    gains = [
        one.summary.average_accuracy - other.summary.average_accuracy
        for one, other in pairs
        if one.summary.average_accuracy is not None and other.summary.average_accuracy is not None
    ]
    if not pairs or len(gains) < len(pairs) or not all(_alike(*pair) for pair in pairs):
        return None
    scores = [
        (a.scores, _named_alike(a.scores, b.scores))
        for a, b in pairs
        if a.scores is not None and b.scores is not None
    ]
    interval = bootstrap(scores) if len(scores) == len(pairs) else None
    return Difference(math.fsum(gains) / len(gains), interval, seeds, sum(gain > 0 for gain in gains))


def _alike(one: Scored, other: Scored) -> bool:
    """Whether both answered the same test examples of the same tasks and were scored alike, as far as is known."""
    a, b = one.summary, other.summary
    tasks = set(a.averaged)
    if set(a.tasks) != set(b.tasks) or tasks != set(b.averaged):
        return False
    if (a.protocol == "released") != (b.protocol == "released"):
        return False
    if any(a.metric_of(task) != b.metric_of(task) for task in tasks):
        return False
    if any(b.decode.get(task, decode) != decode for task, decode in a.decode.items()):
        return False
    if not all(
        a.digests[task].is_scored_like(b.digests[task]) for task in a.digests.keys() & b.digests.keys()
    ):
        return False
    if one.scores is None or other.scores is None:
        return True
    mine, theirs = one.scores, other.scores
    if _has_digests(one, other):  # the same examples, maybe in another file
        return all(len(mine[task]) == len(theirs[task]) for task in tasks)
    return all(mine[task].keys() == theirs[task].keys() for task in tasks)


def _has_digests(one: Scored, other: Scored) -> bool:
    """Whether it is known of all tasks which test examples they had."""
    return all(set(run.summary.averaged) <= run.summary.digests.keys() for run in (one, other))


def _named_alike(scores: Scores, others: Scores) -> Scores:
    """The other scores by the names of the first: the same examples in another file have other ids, in this order."""
    named = {task: dict(zip(scores[task], values.values(), strict=True)) for task, values in others.items()}
    return {task: v if v.keys() == scores[task].keys() else named[task] for task, v in others.items()}


def bootstrap(pairs: Sequence[tuple[Scores, Scores]]) -> Interval:
    """The interval of the mean difference in average score. pairs: one per seed, with the same examples in both."""
    draw = np.random.default_rng(0)
    total = np.zeros((DRAWS, len(pairs)))
    tasks = pairs[0][0]
    for task in tasks:
        keys = sorted({key for one, _ in pairs for key in one[task]})
        weights = draw.poisson(1.0, (DRAWS, len(keys)))  # how often each example is drawn
        place = {key: i for i, key in enumerate(keys)}
        for column, (one, other) in enumerate(pairs):
            change = np.array([one[task][key] - other[task][key] for key in one[task]])
            drawn = weights[:, [place[key] for key in one[task]]]
            total[:, column] += drawn @ change / np.maximum(drawn.sum(axis=1), 1)
    which = draw.integers(len(pairs), size=(DRAWS, len(pairs)))
    return middle_of(100 * np.take_along_axis(total, which, axis=1).mean(axis=1) / len(tasks))
