"""The loss on a task's first training examples: compared before and after training, it shows whether it changed.

Logged losses are of different examples and with dropout, so they vary even if nothing is learned. This one does not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nlora.data.collate import IGNORED
from nlora.models.logits import answer_logits

if TYPE_CHECKING:
    from nlora.data.task import TokenizedExample

_EXAMPLES = 8
MakeBatch = Callable[[Sequence["TokenizedExample"]], dict[str, Tensor]]
Choose = Callable[[dict[str, Tensor]], Tensor | None]


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


@torch.no_grad()
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
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    total = torch.zeros((), device=device)
    count = 0
    try:
        for group in groups:
            batch = {key: value.to(device) for key, value in make_batch(group).items()}
            if choose is not None:
                choose(batch)
            logits, targets = answer_logits(model, batch)
            total += F.cross_entropy(
                logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED, reduction="sum"
            )
            count += sum(len(example.answer_ids) for example in group)
    finally:
        model.train(training)
    return float(total) / count
