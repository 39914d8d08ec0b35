"""How a training applies a method's penalty."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Route = Literal["loss", "unclipped", "decoupled"]


@dataclass(frozen=True, slots=True)
class PenaltyUse:
    """How the gradient of a penalty reaches the factors, and how the penalty grows over a task.

    route: loss: as a part of the loss's gradient, which is clipped and then normalized by AdamW. unclipped: added to
        the loss's gradient after that was clipped; AdamW normalizes the sum. decoupled: beside AdamW, as its own weight
        decay (arXiv 1711.05101): factors -= learning rate · gradient, with the gradient taken before the step.
    growth: share of the task's optimizer steps over which the penalty grows linearly from 0; 0: none.
    """

    route: Route = "loss"
    growth: float = 0.0

    def weight(self, step: int, steps: int) -> float:
        """What the penalty is multiplied by after `step` of all `steps`.

        >>> [PenaltyUse(growth=0.5).weight(step, 8) for step in range(6)]
        [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
        """
        return min(1.0, step / (self.growth * steps)) if self.growth else 1.0


IN_LOSS = PenaltyUse()
"""A penalty that is added to the loss of every step alike."""
