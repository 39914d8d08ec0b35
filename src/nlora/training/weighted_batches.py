"""Batches of examples that count more or less in the loss (`train.label_weights`).

The loss of an optimizer step is then a weighted mean over its answer tokens: Σ w·loss / Σ w.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from nlora.data.collate import IGNORED, labels_of
from nlora.models.inspection import Batch

if TYPE_CHECKING:
    from nlora.data.label_weights import Weights
    from nlora.data.task import TokenizedExample

WEIGHTS = "label_weights"
"""Key of a batch: the weight of each of its `labels`, 0 where there is nothing to predict."""


class WeightedExamples(Sequence[tuple["TokenizedExample", float]]):
    """The data set of a training with weights: pairs of an example and its weight."""

    def __init__(self, examples: Sequence[TokenizedExample], weights: Weights) -> None:
        self._examples, self._weights = examples, weights

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> tuple[TokenizedExample, float]:  # type: ignore[override]
        return self._examples[index], float(self._weights[index])


def weighted(
    collate: Callable[[Sequence[TokenizedExample]], Batch],
) -> Callable[[Sequence[tuple[TokenizedExample, float]]], Batch]:
    """A collator of weighted examples: the batch of `collate`, with the weights of its labels."""

    def with_weights(pairs: Sequence[tuple[TokenizedExample, float]]) -> Batch:
        examples = [example for example, _ in pairs]
        weights = torch.tensor([weight for _, weight in pairs])
        batch = collate(examples)
        labels = batch["labels"]
        of_labels = weights[:, None]
        if "groups" in batch:  # packed: all answers in one row, after one label that is ignored
            answers = ([label for label in labels_of(e) if label != IGNORED] for e in examples)
            lengths = torch.tensor([*map(len, answers)])
            of_labels = torch.cat([weights[:1], weights.repeat_interleave(lengths)])[None]
        return {**batch, WEIGHTS: of_labels * labels.ne(IGNORED)}

    return with_weights
