"""The gradient of a penalty on its way to the factors: with the loss's, after clipping, or beside the optimizer.

It depends on the factors alone, which are the same in all processes, so each process computes and applies it by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from nlora.config.penalty_use import PenaltyUse


class PenaltyGradient(TrainerCallback):
    """Applies the penalty of each optimizer step to these parameters.

    The order of a step: `entering` the loss, the backward pass, `after_backward`, clipping, `after_clipping`, the
    optimizer, and `on_optimizer_step`.

    is_apart: whether the loss's backward pass may leave a parameter out that the penalty has, such as an expert's that
    no token reached. DistributedDataParallel takes those as done before the pass, and would fail at the penalty's.
    """

    def __init__(
        self, use: PenaltyUse, parameters: Sequence[nn.Parameter], *, is_apart: bool = False
    ) -> None:
        self._use, self._parameters, self._is_apart = use, parameters, is_apart
        self._kept: Sequence[Tensor | None] = ()  # until they are applied

    def entering(self, penalty: Tensor, step: int, steps: int) -> Tensor:
        """What is added to the loss: the penalty at this step (from 0), without gradients if they take another way."""
        if self._use.growth:
            penalty = penalty * self._use.weight(step, steps)
        if self._use.route == "loss" and not self._is_apart:
            return penalty
        # Not `backward`, which would have DistributedDataParallel average what it adds.
        self._kept = torch.autograd.grad(penalty, self._parameters, allow_unused=True)
        return penalty.detach()

    def after_backward(self) -> None:
        """Add the gradient to the loss's, which will be clipped with it."""
        if self._use.route == "loss":
            self._add()

    def after_clipping(self) -> None:
        """Add the gradient to the loss's, which has been clipped."""
        if self._use.route == "unclipped":
            self._add()

    def _add(self) -> None:
        for parameter, gradient in self._taken():
            parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move the parameters down the gradient, by the learning rate of the step that was just taken.

        Where the optimizer has skipped the step (`nlora.training.finite_guard`), they stay.
        """
        wrapped = kwargs["optimizer"]
        optimizer = getattr(wrapped, "optimizer", wrapped)  # accelerate's holds torch's
        rate, skipped = float(optimizer.param_groups[0]["lr"]), getattr(optimizer, "found_inf", None)
        with torch.no_grad():
            for parameter, gradient in self._taken():
                if skipped is not None:
                    gradient = gradient.masked_fill(skipped.to(gradient.device).bool(), 0)
                parameter.sub_(gradient, alpha=rate)

    def _taken(self) -> list[tuple[nn.Parameter, Tensor]]:
        """The gradients that are kept, no longer kept."""
        taken = [(p, g) for p, g in zip(self._parameters, self._kept, strict=False) if g is not None]
        self._kept = ()
        return taken
