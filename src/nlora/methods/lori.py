"""LoRI: A is random and frozen, and a small part of B trains, chosen after a first dense part.

Source: arXiv 2504.07448. A fresh adapter per task, with the earlier ones merged into the backbone. A keeps its random
start, so updates of different tasks are nearly orthogonal. All of B trains for the first `calibration` of the task's
optimizer steps. Then the `share` of B that has moved most is chosen, over all modules together, B returns to zero, and
for the rest of the task only what was chosen trains:

    ΔW = s·(M ∘ B)·A

unit: entries, M marks the entries of B with the largest magnitude. unit: rows, it marks the rows of B with the largest
norm, so that all other rows of the update are exactly zero. That is sparsity in the sense of N-LoRA (arXiv 2410.10179),
without a penalty. Of unit: entries, a row of the update is zero only where none of its r entries of B was chosen: if
they are chosen anywhere alike, (1 − share)^r of the rows, 43 % with r = 8 and a share of 0.1.

What is not chosen stays exactly zero, as in `disjoint`: its gradient is set to zero before it is added to `.grad`, and
AdamW's state starts anew with B.

Departures: the paper trains a whole task densely, chooses, and trains the task again. Here both are parts of one
training, so the learning rate goes on along its schedule when B starts again, and a task costs what it costs with other
methods. One threshold for all modules, and A as PEFT draws it, are choices: the paper was not checked on them. Rows are
not from the paper.

Pitfalls:
- The steps of the calibration are lost, apart from the choice. With a schedule that falls to 0, so is the time of the
  highest learning rate.
- AdamW moves all entries alike in its first steps, by about the learning rate. After a calibration of a few steps, what
  has moved most is a matter of rounding, and may depend on the machine and on the number of processes.
- With one threshold for all modules, a module may get nothing to train.
- With `train.early_stopping`, epochs of the calibration do not compete, so at least one more is trained.
- A frozen A can use only r random directions of a layer's input: lora.r matters more than for methods that train A.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from nlora.methods.base import Memory, Method, MethodOptions

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

    from nlora.config.schema import LoraOptions
    from nlora.models.trainable import Trainable


class LoriOptions(MethodOptions):
    """How much of B trains, and how it is chosen."""

    share: float = Field(
        0.1,
        gt=0,
        le=1,
        allow_inf_nan=False,
        description="Share of B that trains; 1: all of it, from the first step on.",
    )
    unit: Literal["entries", "rows"] = Field(
        "entries",
        description="What is chosen: entries of B, as in the paper; or whole rows, so that the other rows of every "
        "update are exactly zero.",
    )
    calibration: float = Field(
        0.2,
        gt=0,
        le=1,
        allow_inf_nan=False,
        description="Share of a task's steps, rounded up, after which the choice is made; not tuned. 1: B is cut down "
        "to the choice at the end, and does not start again.",
    )


class Lori(Method[LoriOptions]):
    """Trains a chosen part of B on a random A."""

    def __init__(self, options: LoriOptions) -> None:
        super().__init__(options)
        self._chosen: dict[str, Tensor] = {}  # by module, (out, r) or (out, 1); empty before the choice

    def attach(self, model: nn.Module, lora: LoraOptions, *, stage: int, seed: int) -> Trainable:
        adapter = super().attach(model, lora, stage=stage, seed=seed)
        self._chosen = {}
        for name, f in adapter.factors().items():
            f.A.requires_grad_(False)
            if self.options.share < 1:
                f.B.register_hook(partial(self._of_chosen, name))  # type: ignore[no-untyped-call]
        return adapter

    def after_step(
        self, adapter: Trainable, *, step: int, steps: int, learning_rate: float, optimizer: Optimizer
    ) -> None:
        if self.options.share == 1 or step != self._calibration(steps):
            return
        import torch

        factors = adapter.factors()
        self._chosen.update(self._choice({name: f.B.detach() for name, f in factors.items()}))
        for name, f in factors.items():
            with torch.no_grad():
                f.B.masked_fill_(~self._chosen[name], 0) if step == steps else f.B.zero_()
            for kept in optimizer.state[f.B].values():
                kept.zero_()

    def may_end(self, step: int, steps: int) -> bool:
        return self.options.share == 1 or step > self._calibration(steps) or step == steps

    def _calibration(self, steps: int) -> int:
        """The step after which the choice is made."""
        return min(math.ceil(self.options.calibration * steps), steps)

    def _of_chosen(self, name: str, gradient: Tensor) -> Tensor:
        """The gradient of a module's B, with zeros where it does not train, even if it is not finite there."""
        if name not in self._chosen:
            return gradient
        return gradient.masked_fill(~self._chosen[name].to(gradient.device), 0)

    def state_dict(self) -> Memory:
        return dict(self._chosen)

    def load_state_dict(self, state: Memory) -> None:
        self._chosen.update(state)

    def _choice(self, Bs: dict[str, Tensor]) -> dict[str, Tensor]:
        """What trains from now on, by module: (out, r) for entries, (out, 1) for rows."""
        import torch

        by_rows = self.options.unit == "rows"
        sizes = {name: B.norm(dim=1, keepdim=True) if by_rows else B.abs() for name, B in Bs.items()}
        every = torch.cat([size.flatten().cpu() for size in sizes.values()])
        number = max(1, round(self.options.share * len(every)))
        chosen = torch.zeros(len(every), dtype=torch.bool)
        chosen[every.topk(number).indices] = True
        parts = chosen.split_with_sizes([size.numel() for size in sizes.values()])
        return {
            name: part.view(size.shape).to(size.device)
            for (name, size), part in zip(sizes.items(), parts, strict=True)
        }
