"""How much each example counts in the loss, by its label (`train.label_weights`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from nlora.data.task import Example

Weights = NDArray[np.float32]


def example_weights(examples: Sequence[Example], choice: str | Mapping[str, float] | None) -> Weights:
    """The weight of each example, (n,).

    choice: `train.label_weights`. balanced: n / (number of labels · examples with this label), so that every label
    counts the same and the mean weight is 1. A label that a mapping does not name counts 1.

    >>> from nlora.data.task import Example
    >>> examples = [Example(str(i), "text", label) for i, label in enumerate(["yes", "no", "no", "no"])]
    >>> example_weights(examples, "balanced")
    array([2.       , 0.6666667, 0.6666667, 0.6666667], dtype=float32)
    >>> example_weights(examples, {"yes": 3}).tolist()
    [3.0, 1.0, 1.0, 1.0]
    """
    if choice == "balanced":
        counts = Counter(example.label for example in examples)
        by_label = {label: len(examples) / (len(counts) * count) for label, count in counts.items()}
    else:
        by_label = dict(choice) if isinstance(choice, Mapping) else {}
    return np.asarray([by_label.get(example.label, 1.0) for example in examples], dtype=np.float32)
