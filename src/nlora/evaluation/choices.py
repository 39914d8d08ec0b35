"""How a task is answered and by what it is scored, as values and in words.

decode_of(task, config.evaluate), metric_of(task, config)      # "labels", "exact_match"
scoring_words({"agnews": "exact_match"}, {"agnews": "labels"}) # exact match of the likeliest label
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from nlora.config.schema import Config, EvaluateOptions
from nlora.data.task import Task

Decode = Literal["labels", "generate"]
Metric = Literal["exact_match", "rougeL"]
METRIC_NAMES: dict[Metric, str] = {"exact_match": "exact match", "rougeL": "ROUGE-L"}
DECODE_NAMES: dict[Decode, str] = {"labels": "the likeliest label", "generate": "the generated answer"}


def metric_of(task: Task, config: Config) -> Metric:
    """Labels are matched exactly. Free text is compared by ROUGE-L, but under the released protocol, which matches."""
    return "exact_match" if task.labels or config.protocol == "released" else "rougeL"


def decode_of(task: Task, options: EvaluateOptions) -> Decode:
    """How a task is answered: free text is always generated."""
    return options.decode if task.labels else "generate"


def by_task(values: Mapping[str, str]) -> str:
    """The value of each task, in words: `a`; where they differ, `a for x, y; b for z`."""
    tasks: dict[str, list[str]] = {}
    for task, value in values.items():
        tasks.setdefault(value, []).append(task)
    if len(tasks) < 2:
        return next(iter(tasks), "")
    return "; ".join(f"{value} for {', '.join(names)}" for value, names in tasks.items())


def scoring_words(metrics: Mapping[str, Metric], decode: Mapping[str, Decode]) -> str:
    """What the scores are: `exact match of the likeliest label`; by task where they differ.

    metrics: of every task. decode: of those where it is known.
    """
    return by_task(
        {
            task: METRIC_NAMES[metric] + (f" of {DECODE_NAMES[decode[task]]}" if task in decode else "")
            for task, metric in metrics.items()
        }
    )
