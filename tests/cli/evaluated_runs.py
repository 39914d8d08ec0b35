"""Runs to evaluate, and `nlora eval` of them."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from helpers import learn, write_config
from nlora.api import evaluation
from nlora.cli.evaluate import evaluate
from nlora.runs.summary import Summary

Runs = Callable[[str], tuple[Path, Summary]]


def ask(run: Path, **options: Any) -> evaluation.Evaluation:
    """What `nlora eval` prints, before it is printed. options: of the command."""
    found = []
    score = evaluation.evaluate

    def keep(*arguments: Any) -> evaluation.Evaluation:
        found.append(score(*arguments))
        return found[0]

    with mock.patch.object(evaluation, "evaluate", keep), contextlib.redirect_stdout(io.StringIO()):
        evaluate(str(run), **options)
    return found[0]


def train_run(folder: Path, model: Path, method: str, *overrides: str) -> Summary:
    """A run of two tasks that generates, so that what the model has become shows in its answers."""
    return learn(
        write_config(
            folder,
            model,
            method=method,
            train={"epochs": 3, "batch_size": 8, "learning_rate": 2e-2, "max_target_tokens": 8},
            evaluate={"batch_size": 4, "decode": "generate", "unseen": True, "zero_shot": True},
        ),
        *overrides,
    )


def stage_folder(run: Path, stage: int) -> Path:
    (found,) = (run / "outputs").glob(f"{stage}-*")
    return found
