"""What each stage trains on: its examples as text and as tokens, their weights, and how kept ones are mixed in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nlora.config.schema import Config
from nlora.data.columns import TokenizedExamples
from nlora.data.label_weights import Weights, example_weights
from nlora.data.replay import Mix
from nlora.data.task import Example, Task
from nlora.data.tokenize import ExampleTokenizer
from nlora.errors import InputErrors, Problem
from nlora.methods.base import Method, Portion

Kept = Mapping[str, Sequence[Example]]
"""The examples that `replay` keeps of each task, by its name."""


@dataclass(frozen=True, slots=True)
class StageExamples:
    """What one stage trains on.

    own: the first portion's tokens, those of the stage's task. tokens: of all portions, in their order; a conversation
    may have become several sequences. weights: in the loss; None: all the same. mix: None: each example once per epoch.
    replayed: how many examples of each earlier task a later one trains on again, by name.
    """

    portions: Sequence[Portion]
    own: TokenizedExamples
    tokens: TokenizedExamples
    weights: Weights | None
    mix: Mix | None
    replayed: Mapping[str, int]

    @property
    def in_epoch(self) -> int:
        """Sequences that an epoch trains on, repeated ones included."""
        return len(self.tokens) if self.mix is None else self.mix.in_epoch

    @property
    def passes(self) -> float:
        """How often an epoch trains on each example of earlier tasks, on average."""
        return 1.0 if self.mix is None else self.mix.replayed_in_epoch / self.mix.kept


def stage_examples(
    config: Config,
    tasks: Sequence[Task],
    method: Method,
    encoder: ExampleTokenizer,
    index: int,
    kept: Kept,
) -> StageExamples:
    """What the stage of `tasks[index]` trains on.

    Raises InputErrors for prompts that do not fit, labels with the same tokens, and shares of a batch that cannot be.
    """
    task = tasks[index]
    portions: list[Portion] = []
    if task.train:  # nothing is trained when an adapter from elsewhere joins
        portions += method.examples(tasks, index, config.seed)
        portions += [(earlier, kept[earlier.name]) for earlier in tasks[:index] if earlier.name in kept]
    encoded = [encoder.encode(*portion, all_turns=True) for portion in portions]
    own = encoded[0] if encoded else TokenizedExamples([])
    tokens = TokenizedExamples(part for rows in encoded for part in rows.parts)
    weights = _weights(config, portions, encoded)
    mix = _mix(config, task, len(own), len(tokens))
    others = () if method.at_once else portions
    replayed = {other.name: len(some) for other, some in others if other is not task and some}
    return StageExamples(portions, own, tokens, weights, mix, replayed)


def _mix(config: Config, task: Task, own: int, examples: int) -> Mix | None:
    """How a stage mixes its own examples with the others; None if each of them is seen once per epoch."""
    share, batch_size = config.replay.share, config.train_options(task.name).batch_size
    if not config.replay.is_on or share is None or own in (0, examples):
        return None
    mix = Mix.of(own, examples - own, batch_size, share)
    if mix is None:
        which = "none" if share < 0.5 else "all"
        what = (
            f"{share:g} of a batch of {batch_size} is {which} of its examples; change it, or train.batch_size"
        )
        raise InputErrors([Problem.at(("replay", "share"), what)])
    return mix


def _weights(
    config: Config, portions: Sequence[Portion], encoded: Sequence[TokenizedExamples]
) -> Weights | None:
    """The weight of each example in the loss; None if all count the same."""
    choices = [config.train_options(task.name).label_weights for task, _ in portions]
    if all(choice is None for choice in choices):
        return None
    what = "the answers of its conversations are examples of their own, without weights; leave train.label_weights out"
    if problems := [
        Problem(f"task {task.name}", what)
        for (task, some), rows in zip(portions, encoded, strict=True)
        if len(rows) != len(some)
    ]:
        raise InputErrors(problems)
    each = zip(portions, choices, strict=True)
    return np.concatenate([example_weights(some, choice) for (_, some), choice in each])
