"""Refuses an optimizer step whose loss, penalty or gradient is not finite, and says which step and why.

On a CPU the step is refused at once. Reading a number from a GPU would wait for it at every step. There the flag stays
on the device: from the first such step on, torch's fused optimizer skips its updates, as it does for a gradient
scaler, so the weights remain those of the last good step. So does a penalty that bypasses the optimizer. A method's
`after_step` still runs: those that project or mask the factors do once more what they did, and the choice of lori, if
it falls into these steps, is made. The flag is read when something is logged or saved, and nothing of it is saved.

Several processes judge a step alike, by the loss of all of them, and say the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate.utils import reduce
from torch import Tensor

from nlora.errors import RunError
from nlora.models import processes
from nlora.models.inspection import Batch

ROWS = "example_rows"
"""Key of a batch: the index of each of its examples in the training set, (B,)."""
_WATCHED = ("loss", "penalty", "gradient")
_NAMED = 3
"""Examples that a message names."""


class NotFiniteError(RunError):
    """A loss, penalty or gradient that is NaN or infinite. The weights are those before the step.

    what: loss, penalty or gradient. value: of it; for the gradient, its norm. step: optimizer step, from 1.
    rows: indices of the step's examples in the training set.
    """

    def __init__(self, what: str, value: float, step: int, rows: Sequence[int]) -> None:
        self.what, self.value, self.step, self.rows = what, value, step, tuple(rows)
        super().__init__(self.in_words())

    def in_words(self, where: str = "", example: Callable[[int], str] = str) -> str:
        """The message. where: the stage, followed by a separator. example: the name of the example of a row."""
        named = ", ".join(map(example, self.rows[:_NAMED]))
        more = f" and {len(self.rows) - _NAMED} more" if len(self.rows) > _NAMED else ""
        examples = f"; it was on the training examples {named}{more}" if self.rows else ""
        return (
            f"{where}step {self.step}: the {self.what} is {self.value}, so the step was not taken{examples}; "
            f"{self._way_out}"
        )

    @property
    def _way_out(self) -> str:
        if self.step > 1:
            return "try a smaller train.learning_rate or method.weight"
        if self.what == "penalty":
            return "try a smaller method.weight"
        return "nothing was trained yet: try dtype=float32, or look at these examples"


class FiniteGuard:
    """Watches the optimizer steps of one training.

    optimizer: the one that takes the steps. defers: leave the flag on the device until `check`; None: if the optimizer
    runs on a GPU and can skip updates by itself.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, *, defers: bool | None = None) -> None:
        self._optimizer: Any = optimizer
        self._device = optimizer.param_groups[0]["params"][0].device
        can_skip = bool(optimizer.defaults.get("fused"))
        self._defers = (self._device.type == "cuda" and can_skip) if defers is None else defers
        self._first = torch.zeros(
            3, device=self._device
        )  # step, index in _WATCHED, value; of the first bad step
        self._unread: dict[int, tuple[Tensor, Sequence[Tensor]]] = {}  # own loss and rows, by step

    def before_step(
        self, step: int, *, loss: Any, penalty: Any, gradient_norm: Any, rows: Sequence[Tensor]
    ) -> None:
        """Look at a step (from 1) before the optimizer takes it. All processes call it.

        loss, rows: of this process; rows: of each micro-batch. penalty, gradient_norm: the same in all processes.
        Raises NotFiniteError, on a GPU only at the next `check`.
        """
        own, *common = map(self._number, (loss, penalty, gradient_norm))
        self._unread[step] = own, rows
        of_all = own if processes.size() == 1 else reduce(own, reduction="mean")
        values = torch.stack([of_all, *common])
        finite = values.isfinite()
        which = finite.to(torch.uint8).argmin(keepdim=True)
        now = torch.cat([torch.full((1,), float(step), device=self._device), which, values.gather(0, which)])
        self._first = torch.where(self._first[0].eq(0) & ~finite.all(), now, self._first)
        if self._defers:
            self._optimizer.found_inf = self._first[0].gt(0).float()
        else:
            self.check()

    def check(self) -> None:
        """Raise NotFiniteError if a step so far was not finite. All processes call it."""
        step, which, value = self._first.tolist()
        if step:
            what = _WATCHED[int(which)]
            own, rows = self._unread[int(step)]
            is_innocent = what == "loss" and bool(own.isfinite())  # another process's examples have done it
            suspects = [] if is_innocent else [row for some in rows for row in some.tolist()]
            everyone = [row for some in processes.gather(suspects) for row in some]
            raise NotFiniteError(what, value, int(step), everyone)
        self._unread.clear()

    def _number(self, value: Any) -> Tensor:
        """A scalar tensor in float32 on the optimizer's device, without waiting for it."""
        if not isinstance(value, Tensor):
            return torch.full((), float(value), device=self._device)
        whole = value.full_tensor() if hasattr(value, "full_tensor") else value
        return whole.detach().to(self._device, torch.float32).reshape(())


class NumberedExamples(Sequence[tuple[int, Any]]):
    """The data set of a training that knows which examples a batch has: pairs of an index and its example."""

    def __init__(self, examples: Sequence[Any]) -> None:
        self._examples = examples

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> tuple[int, Any]:  # type: ignore[override]
        return index, self._examples[index]


def numbered(
    collate: Callable[[Sequence[Any]], Batch],
) -> Callable[[Sequence[tuple[int, Any]]], Batch]:
    """A collator of numbered examples: the batch of `collate`, with the indices of its examples."""

    def with_rows(pairs: Sequence[tuple[int, Any]]) -> Batch:
        batch = collate([example for _, example in pairs])
        return {**batch, ROWS: torch.tensor([row for row, _ in pairs])}

    return with_rows
