"""GORP, its low-rank part: A's gradients are kept off the directions that earlier tasks' gradients had last.

Source: arXiv 2507.02503 (ACL 2025). We read a summary of the paper, and its trainer in a public copy of the released
code. A fresh adapter per task, with the earlier ones merged into the backbone. G is the gradient of A (r, in), and M
Adam's running mean of it (β1 = 0.9), as it is after the last step of a task. S has orthonormal columns:

    side: rank     G <- G - S·Sᵀ·G,   S (r, k):   leading left singular vectors of each M, as in the released code
    side: input    G <- G - G·S·Sᵀ,   S (in, k):  leading right singular vectors

AdamW gets the projected G, for both of its means. After a task, leading singular vectors of its own M, off S, join S
until S has the share `threshold` of ‖M‖²_F. The first task has no S, and B is never projected.

Departures: the paper also trains full-rank weights of other layers, through a projection into a small subspace. That
part is left out here. The released code leaves out the first direction that reaches the threshold after the first task.
It clips gradients before they are projected, not after.

Pitfalls:
- side: rank says nothing about earlier tasks' updates. Row i of a fresh A has nothing to do with row i of an earlier
  one. S fills the r directions after a few tasks; from then on A does not move, and only B learns.
- side: input keeps the gradient's rows off directions of the input, but not the update: A starts random, and AdamW
  divides each entry by a mean of its own, so a step has parts along S again. For an update that stays off earlier
  inputs, see inflora.
- M is a mean of the last ten or so steps. With early stopping it is that of the last epoch, not of the best.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from nlora.errors import RunError
from nlora.methods.base import Memory, Method, MethodOptions

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer
    from torch.utils.hooks import RemovableHandle

    from nlora.config.schema import LoraOptions
    from nlora.data.task import TokenizedExample
    from nlora.models.lora_adapter import AdapterState
    from nlora.models.trainable import Trainable


class GorpOptions(MethodOptions):
    """Which gradients are removed."""

    threshold: float = Field(
        0.9,
        ge=0,
        le=1,
        description="Share of the energy of a task's mean gradient that later tasks keep off (released code: 0.9); "
        "0: exactly incremental LoRA, and the task adds nothing to what later ones keep off.",
    )
    side: Literal["rank", "input"] = Field(
        "rank",
        description="Of which side of A's gradient (r, in) directions are removed: rank, r, as in the released code; "
        "input, in.",
    )


class Gorp(Method[GorpOptions]):
    """Projects the gradient of A off the subspace of earlier tasks' mean gradients."""

    shared_options = ("side",)

    def __init__(self, options: GorpOptions) -> None:
        super().__init__(options)
        self._subspace: dict[str, Tensor] = {}  # Sᵀ (k, r or in) by module, on the CPU
        self._moments: dict[str, Tensor] = {}  # Adam's own tensors, which it changes in place
        self._hooks: list[RemovableHandle] = []

    def check_adopted(self, update: AdapterState, lora: LoraOptions) -> str | None:
        return "gorp needs the gradients of earlier tasks, which an adapter does not have"

    def restore(self, memory: Memory) -> None:
        self._subspace = dict(memory)

    def begin_task(self, adapter: Trainable, earlier: Sequence[AdapterState]) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._moments = [], {}
        if not earlier:
            self._subspace = {}
        if not earlier or self.options.threshold == 0:
            return
        for name, f in adapter.factors().items():
            if name not in self._subspace:
                raise RunError(
                    f"gorp has no gradients of earlier tasks for {name}; run the earlier stages again"
                )
            if len(rows := self._subspace[name]):
                # The projection is linear: it may come before micro-batches are added up and processes averaged.
                hook = f.A.register_hook(_Projected(rows.to(f.A), self.options.side))  # type: ignore[no-untyped-call]
                self._hooks.append(hook)

    def after_step(
        self, adapter: Trainable, *, step: int, steps: int, learning_rate: float, optimizer: Optimizer
    ) -> None:
        for name, f in adapter.factors().items():
            if "exp_avg" in (state := optimizer.state.get(f.A, {})):  # an expert may have had no token yet
                self._moments[name] = state["exp_avg"]

    def end_task(
        self, model: nn.Module, modules: Sequence[str], examples: Sequence[TokenizedExample], pad_id: int
    ) -> Memory:
        import torch

        nothing = torch.zeros(0, 0)
        found = {
            name: self._extended(name) if name in self._moments else self._subspace.get(name, nothing)
            for name in modules
        }
        self._subspace, self._moments = {}, {}  # the next stage is given it, maybe with options of its own
        return found

    def _extended(self, module: str) -> Tensor:
        """Sᵀ with the directions that this task adds, float32."""
        import torch

        from nlora.methods._subspace import extended

        M = self._moments[module].detach().cpu().double()  # (r, in)
        M = M.mT if self.options.side == "rank" else M  # so that its rows are in the space of S
        old = self._subspace.get(module, torch.zeros(0, 0)).double()
        old = old if len(old) else M[:0]
        _, S, directions = torch.linalg.svd(M - (M @ old.mT) @ old, full_matrices=False)
        return extended(old, S.square(), directions, M.square().sum(), self.options.threshold).float()


class _Projected:
    """A gradient hook that removes the part in the span of some orthonormal rows."""

    def __init__(self, rows: Tensor, side: str) -> None:
        self._rows, self._side = rows, side  # (k, r or in)

    def __call__(self, gradient: Tensor) -> Tensor:
        rows = self._rows
        if len(rows) == rows.shape[1]:
            return gradient * 0.0  # AdamW would make whole steps of what rounding leaves
        if self._side == "rank":
            return gradient - rows.mT @ (rows @ gradient)
        return gradient - (gradient @ rows.mT) @ rows
