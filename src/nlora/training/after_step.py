"""Calls a method's hook right after each optimizer step, before the step is counted, logged, saved or shown."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from transformers import TrainerCallback


class AfterStep(Protocol):
    """See `Method.after_step`, which this is for one adapter."""

    def __call__(
        self, *, step: int, steps: int, learning_rate: float, optimizer: torch.optim.Optimizer
    ) -> None: ...


class AfterStepCallback(TrainerCallback):
    """Calls the hook in each process, with the learning rate that the step was taken with."""

    def __init__(self, hook: AfterStep) -> None:
        self._hook = hook

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        wrapped = kwargs["optimizer"]
        optimizer = getattr(wrapped, "optimizer", wrapped)  # accelerate's holds torch's
        # The schedule moves on, and the step is counted, after this.
        rate = float(optimizer.param_groups[0]["lr"])
        self._hook(step=state.global_step + 1, steps=state.max_steps, learning_rate=rate, optimizer=optimizer)
