"""How a task is answered and scored, as values and in words.

>>> scoring_words({"agnews": "exact_match", "notes": "mine.py:score"}, {"agnews": "labels"})
'exact match of the likeliest label for agnews; mine.py:score for notes'
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from nlora.config.schema import Config, EvaluateOptions
from nlora.data.task import Task

Decode = Literal["labels", "generate"]
Metric = str
"""A key of METRIC_NAMES, or a function of the user's own: `mine.py:score`."""
METRIC_NAMES: dict[Metric, str] = {
    "exact_match": "exact match",
    "macro_f1": "macro-F1",
    "rougeL": "ROUGE-L",
    "edit_similarity": "edit similarity",
    "sari": "SARI",
}
DECODE_NAMES: dict[Decode, str] = {"labels": "the likeliest label", "generate": "the generated answer"}


def metric_of(task: Task, config: Config, default: Metric | None = None) -> Metric:
    """The metric that the configuration gives the task; accuracy is exact match, and is recorded as such.

    default: of a task without one; None: exact match for tasks with labels, and for all tasks under the released
    protocol; ROUGE-L for other free text.
    """
    if task.metric is not None:
        return "exact_match" if task.metric == "accuracy" else task.metric
    return default or ("exact_match" if task.labels or config.protocol == "released" else "rougeL")


def metric_name(metric: Metric) -> str:
    """What tables call it."""
    return METRIC_NAMES.get(metric, metric)


def decode_of(task: Task, options: EvaluateOptions) -> Decode:
    """How a task is answered. Free text is always generated."""
    return options.decode if task.labels else "generate"


def both_or_all(count: int) -> str:
    """`both` of two, `all` of more."""
    return "both" if count == 2 else "all"


def by_task(values: Mapping[str, str]) -> str:
    """Values by task, in words: `a` if all are the same, else `a for x, y; b for z`."""
    tasks: dict[str, list[str]] = {}
    for task, value in values.items():
        tasks.setdefault(value, []).append(task)
    if len(tasks) < 2:
        return next(iter(tasks), "")
    return "; ".join(f"{value} for {', '.join(names)}" for value, names in tasks.items())


def scoring_words(metrics: Mapping[str, Metric], decode: Mapping[str, Decode]) -> str:
    """The kind of scores, in words; by task if they differ. decode: of the tasks for which it is known."""
    return by_task(
        {
            task: metric_name(metric) + (f" of {DECODE_NAMES[decode[task]]}" if task in decode else "")
            for task, metric in metrics.items()
        }
    )
