"""The loss on a task's first training examples: compared before and after training, it shows whether it changed.

Logged losses are of different examples and with dropout, so they vary even if nothing is learned. This one does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from nlora.training.answer_losses import Choose, MakeBatch, answer_losses

if TYPE_CHECKING:
    from nlora.data.task import TokenizedExample

_EXAMPLES = 8


@dataclass
class LossBefore:
    """The loss before training; part of the state of a half-trained task, since it cannot be computed later."""

    value: float | None = None

    def state_dict(self) -> dict[str, Any]:
        """The loss, as it is saved."""
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the loss of the start instead of one computed in the middle."""
        self.value = state["value"]


def probe_loss(
    model: nn.Module,
    examples: Sequence[TokenizedExample],
    make_batch: MakeBatch,
    *,
    together: int,
    choose: Choose | None = None,
) -> float:
    """Mean cross-entropy over the answer tokens of the first 8 examples, without dropout. Draws no random numbers.

    together: how many examples may share a batch. choose: see `PenalizedTrainer`.
    """
    first = [examples[i] for i in range(min(_EXAMPLES, len(examples)))]
    groups = [first[start : start + together] for start in range(0, len(first), together)]
    found = [pair for group in groups for pair in answer_losses(model, group, make_batch, choose)]
    return sum(loss for loss, _ in found) / sum(tokens for _, tokens in found)
