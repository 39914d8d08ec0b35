"""The metric that a configuration gives a task, with the user's own function if it names one."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from nlora.config.outside_code import (
    Reference,
    UnusableCodeError,
    is_python_file,
    load_function,
    version_of_file,
)
from nlora.config.schema import Config
from nlora.config.task_source import METRICS, OF_LABELS, TaskSource
from nlora.data.task import Task
from nlora.errors import InputErrors, Key, Problem


def versions_of_scorers(config: Config, base_folder: Path) -> dict[str, str]:
    """What identifies the code of the user's own functions, for run.yaml: a digest of each file."""
    found: dict[str, str] = {}
    for source in config.tasks:
        if source.metric is not None and source.metric not in METRICS:
            found |= _version(Reference.of(source.metric).module, (Path(), base_folder))
    return found


def _version(module: str, folders: Sequence[Path]) -> dict[str, str]:
    """The name of a loaded module's file, with a digest of its contents."""
    file = module if is_python_file(module) else getattr(sys.modules.get(module), "__file__", None)
    return version_of_file(file, folders) if file else {}


def with_metric(task: Task, source: TaskSource, folders: Sequence[Path], key: Key) -> Task:
    """The task with the metric of its entry in the configuration.

    folders: where to look for the file of the user's own function. key: of the entry.

    Raises InputErrors for a metric of labels on free text, and for a function that cannot be loaded.
    """
    metric = source.metric
    if metric in OF_LABELS and task.labels is None:
        way_out = "set its labels, or take exact_match or rougeL"
        what = f"{metric} counts labels, but task '{task.name}' has free text as answers; {way_out}"
        raise InputErrors([Problem.at((*key, "metric"), what)])
    if metric is None or metric in METRICS:
        return replace(task, metric=metric)
    reference = Reference.of(metric)
    try:
        scorer = load_function(reference, folders)
    except UnusableCodeError as error:
        raise InputErrors([Problem.at((*key, "metric"), str(error))]) from error
    # nlora's own functions may be edited without giving other scores.
    is_own = reference.module.partition(".")[0] != "nlora"
    version = next(iter(_version(reference.module, folders).values()), None) if is_own else None
    return replace(task, metric=reference.label, scorer=scorer, scorer_version=version)
