"""A part of a task's training examples, held out to choose the weight of the penalty (`method.weight: auto`)."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from nlora.config.schema import Config
from nlora.data.splits import hold_out
from nlora.data.task import Task
from nlora.errors import InputErrors

FEWEST = 10
"""Held-out examples. The standard error of so few is more than ten points already."""


def held_out(config: Config, task: Task) -> Task:
    """The task with `evaluate.validation_share` of its training examples as test examples, which train then lacks.

    With `train.early_stopping`, these are the examples that it holds out anyway. Raises InputErrors for a task with too
    few examples.
    """
    if task.validation:
        return replace(task, test=task.validation)
    draw = int.from_bytes(
        hashlib.sha256(f"{config.seed}/{task.name}/auto_weight".encode()).digest()[:8], "big"
    )
    return hold_out(task, config.evaluate.validation_share, draw)


def held_out_problem(config: Config, task: Task) -> str | None:
    """Why too few examples would be held out; None if they are enough."""
    try:
        n = len(held_out(config, task).test)
    except InputErrors:
        n = 0
    if n >= FEWEST:
        return None
    return (
        f"auto holds out evaluate.validation_share of the training examples and needs {FEWEST}, but of task "
        f"{task.name}'s {len(task.train)} that is {n}"
    )
