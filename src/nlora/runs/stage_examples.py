"""The examples that a stage trains on, as tokens, with their weights in the loss."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nlora.config.schema import Config
from nlora.data.columns import TokenizedExamples
from nlora.data.label_weights import Weights, example_weights
from nlora.data.task import Example, Task
from nlora.data.tokenize import ExampleTokenizer
from nlora.errors import InputErrors, Problem
from nlora.methods.base import Method


def encode_stages(
    config: Config, tasks: Sequence[Task], methods: Sequence[Method], encoder: ExampleTokenizer
) -> list[tuple[TokenizedExamples, Weights | None]]:
    """Every stage's training examples as tokens, with their weights in the loss, if these differ.

    Raises InputErrors for prompts that do not fit and labels with the same tokens.
    """
    problems: list[Problem] = []
    encoded: list[tuple[TokenizedExamples, Weights | None]] = []
    for index, method in enumerate(methods):
        try:
            encoded.append(encode_stage(config, tasks, index, method, encoder))
        except InputErrors as error:
            problems.extend(error.problems)
    if problems:
        raise InputErrors(problems)
    return encoded


def encode_stage(
    config: Config, tasks: Sequence[Task], index: int, method: Method, encoder: ExampleTokenizer
) -> tuple[TokenizedExamples, Weights | None]:
    """The same for the stage of `tasks[index]` alone."""
    given = method.examples(tasks, index, config.seed)
    portions = [encoder.encode(*portion, all_turns=True) for portion in given]
    choices = [config.train_options(task.name).label_weights for task, _ in given]
    weights = None
    if any(choice is not None for choice in choices):
        each = zip(given, choices, strict=True)
        weights = np.concatenate([example_weights(some, choice) for (_, some), choice in each])
        if problems := _without_weights(given, portions):
            raise InputErrors(problems)
    return TokenizedExamples(part for p in portions for part in p.parts), weights


def _without_weights(
    given: Sequence[tuple[Task, Sequence[Example]]], portions: Sequence[TokenizedExamples]
) -> list[Problem]:
    """The tasks whose answers cannot be weighted, because conversations have become several examples."""
    what = "the answers of its conversations are examples of their own, without weights; leave train.label_weights out"
    return [
        Problem(f"task {task.name}", what)
        for (task, some), rows in zip(given, portions, strict=True)
        if len(rows) != len(some)
    ]
