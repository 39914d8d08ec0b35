"""Training examples held out to choose the weight of the penalty (`method.weight: auto`): a part of the new task's, and
with `replay` a part of what is kept of each earlier one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from nlora.config.schema import Config
from nlora.data.splits import draw_seed, hold_out
from nlora.data.task import Task
from nlora.errors import InputErrors
from nlora.methods.base import Portion

FEWEST = 10
"""Held-out examples. The standard error of so few is more than ten points already."""
ENOUGH = 100
"""Held-out examples. The standard error is at most five points, so that chance alone rarely decides."""
FEWEST_REMEMBERED = 5
"""Of an earlier task. These are fewer because several tasks' are looked at together."""


def held_out(config: Config, task: Task) -> Task:
    """The task with `evaluate.validation_share` of its training examples as test examples, which train then lacks.

    With `train.early_stopping`, these are the examples that it holds out anyway. Raises InputErrors for a task with too
    few examples.
    """
    if task.validation:
        return replace(task, test=task.validation)
    return _divided(config, task)


def held_out_memory(config: Config, kept: Sequence[Portion]) -> list[Task]:
    """Each earlier task with `evaluate.validation_share` of its kept examples as test examples, and the rest as train.

    A task of which fewer than FEWEST_REMEMBERED would be held out keeps all of them, and has no test examples.
    """
    found = []
    for earlier, examples in kept:
        whole = replace(earlier, train=tuple(examples), test=(), validation=())
        try:
            divided = _divided(config, whole)
        except InputErrors:
            divided = whole
        found.append(divided if len(divided.test) >= FEWEST_REMEMBERED else whole)
    return found


def _divided(config: Config, task: Task) -> Task:
    seed = draw_seed(config.seed, task.name, "auto_weight")
    return hold_out(task, config.evaluate.validation_share, seed)


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


def held_out_note(config: Config, tasks: Sequence[Task]) -> list[str]:
    """That chance may choose the weights of these tasks; empty if enough examples are held out of each.

    Adapters from elsewhere, which come without examples, choose nothing.
    """
    few = {task.name: n for task in tasks if task.train and (n := len(held_out(config, task).test)) < ENOUGH}
    if not few:
        return []
    shown = ", ".join(f"{n} of {name}" for name, n in few.items())
    return [
        f"weight: auto looks at few held-out examples ({shown}), so chance may choose a weight that harms; "
        f"{ENOUGH} tell more"
    ]
