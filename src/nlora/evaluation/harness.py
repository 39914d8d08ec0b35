"""Tasks of EleutherAI's lm-evaluation-harness (the package lm-eval), run on a model that is in memory.

The harness makes the prompts, loads the data and computes the metrics; nothing of it is changed, so its numbers are
those that `lm_eval` prints for the same model. Code that a data set of the hub brings along is never run.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import io
import logging
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from nlora.config.outside_code import one_line
from nlora.errors import RunError, did_you_mean, missing
from nlora.models.hub import offline_without_hub

if TYPE_CHECKING:
    from nlora.models.backbone import Backbone

Results = dict[str, dict[str, float]]
"""By task, then by metric, as the harness names and scales them; `acc_stderr` is the standard error of `acc`."""
PACKAGE = "lm-eval"
_MOST_ROWS = 16
"""Texts in a pass: the harness keeps the logits of all their tokens."""
_SEED = 1234
"""The harness's own default."""
_BOOTSTRAPS = 1000
"""Samples for the standard errors that have no formula."""


def harness_problem(names: Sequence[str], folder: str | None) -> str | None:
    """Why these tasks cannot be run; None if they are known. Their data are not looked for.

    folder: of task files of the user's own.
    """
    if importlib.util.find_spec("lm_eval") is None:
        return missing(PACKAGE)
    try:
        manager = _manager(tuple(names), folder)
    except Exception as error:  # whatever a task file of the user's own sets off
        return f"the task files cannot be read: {one_line(error)}"
    known = manager.all_tasks
    if unknown := [name for name in names if name not in known]:
        hint = did_you_mean(unknown[0], known) or "; `lm_eval ls tasks` lists them"
        return f"lm-evaluation-harness has no task '{unknown[0]}'{hint}"
    return None


def run_harness(
    backbone: Backbone, names: Sequence[str], *, folder: str | None, limit: int | None, batch_size: int
) -> Results:
    """The results of these tasks, by the backbone as it is. The harness seeds the global random generators.

    limit: the first examples of each task. Raises RunError, in one line, if the harness fails.
    """
    try:
        with _silent(), offline_without_hub():
            from lm_eval import evaluate
            from lm_eval.models.huggingface import HFLM

            # As `lm_eval.simple_evaluate`, which would also ask git and pip about this machine.
            loaded = _manager(tuple(names), folder).load(list(names))
            for task in loaded["tasks"].values():
                task.set_fewshot_seed(seed=_SEED)
            random.seed(0)
            np.random.seed(_SEED)
            torch.manual_seed(_SEED)

            model: Any = HFLM(
                pretrained=backbone.model,
                tokenizer=copy.deepcopy(backbone.tokenizer),  # it sets the padding
                batch_size=min(batch_size, _MOST_ROWS),
            )
            found = evaluate(model, loaded, limit=limit, bootstrap_iters=_BOOTSTRAPS, log_samples=False)
    except Exception as error:  # data that cannot be loaded, a task's own code
        raise RunError(
            f"lm-evaluation-harness failed on {', '.join(names)}: {one_line(error)}; leave "
            "evaluate.general.harness out to go on without it"
        ) from error
    return results_of(found, names)


def results_of(found: Mapping[str, Any], names: Sequence[str]) -> Results:
    """The metrics of the named tasks. A group without metrics of its own is replaced by its tasks.

    found: what `lm_eval.evaluate` returns.

    >>> results_of({"results": {"a": {"alias": "a", "acc,none": 0.5, "acc,strict": 0.25}}}, ["a"])
    {'a': {'acc': 0.5, 'acc (strict)': 0.25}}
    """
    results: Results = {}
    for name in names:
        metrics = _metrics(found["results"].get(name, {}))
        if metrics:
            results[name] = metrics
        else:
            results |= results_of(found, found.get("group_subtasks", {}).get(name, []))
    return results


def _metrics(values: Mapping[str, Any]) -> dict[str, float]:
    """`acc,none` as `acc`, and `acc,strict` as `acc (strict)`; only what is a number."""
    metrics = {}
    for key, value in values.items():
        name, comma, kind = key.partition(",")
        if comma and isinstance(value, int | float) and math.isfinite(value):
            metrics[name if kind == "none" else f"{name} ({kind})"] = float(value)
    return metrics


@lru_cache(maxsize=2)
def _manager(names: tuple[str, ...], folder: str | None) -> Any:
    """The harness's index of tasks. Its own 14,000 take seconds to read, so they are left out if `folder` has all."""
    from lm_eval.tasks import TaskManager

    if folder is not None:
        own: Any = TaskManager(include_path=folder, include_defaults=False)
        if all(name in own.all_tasks for name in names):
            return own
    return TaskManager(include_path=folder)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Without the harness's log and progress bars; its errors are raised."""
    log = logging.getLogger("lm_eval")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        log.setLevel(level)
