"""ELLA: a new update is penalized only at the entries that earlier updates have changed.

Source: arXiv 2601.02232. A fresh adapter per task, with the earlier ones merged into the backbone. Added to the loss
of an optimizer step:

    weight · Σ_modules ‖ΔW_t ∘ S‖²_F,      S = Σ_{i<t} ΔW_i,      ΔW = s·B·A

The cost of an entry depends on both the old and the new update: where nothing has changed before, the new task is free.
S is one matrix per module, however many tasks there are. Each stage recomputes it from the saved earlier adapters.

Departures: none known. The authors' code was not available, so this implements the published formula only.

Pitfalls:
- The default weight is not tuned. The penalty grows with the fourth power of the updates' size, so a weight (including
  the paper's) does not carry over to another rank, alpha, learning rate or model.
- S takes as much memory as the adapted layers' weights, in float32.
- Updates of opposite sign cancel in S: an entry that one task raised and another lowered is not protected.
- A fresh adapter has B = 0, so the penalty and its gradient are zero at the first step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from nlora.methods._devices import beside
from nlora.methods.base import Method, MethodOptions

if TYPE_CHECKING:
    from torch import Tensor

    from nlora.models.lora_adapter import AdapterState, ModuleShape
    from nlora.models.trainable import Trainable

# Not tuned. For unpenalized updates (tasks 2 to 5 of incremental LoRA on SmolLM2, rank 8, scaling 4: ‖ΔW‖_F of 6 to 13
# over 60 modules), the sum is 2e-4 to 4e-3. Weights of 220 to 2100 would make the penalty there as large as `nlora`'s
# with its default weight, 0.4 to 1.2; this value is near the middle of that range.
DEFAULT_WEIGHT = 500.0


class EllaOptions(MethodOptions):
    """How strongly a new update avoids the entries that earlier ones have changed."""

    weight: float = Field(
        DEFAULT_WEIGHT,
        ge=0,
        allow_inf_nan=False,
        description="λ, the weight of the squared overlap with the sum of the earlier updates; 0: exactly incremental "
        "LoRA. The default is not tuned; it gives a penalty about as large as nlora's on SmolLM2.",
    )


class Ella(Method[EllaOptions]):
    """Weights the square of the new update by the square of the sum of the earlier ones."""

    def __init__(self, options: EllaOptions) -> None:
        super().__init__(options)
        self._squares: dict[str, Tensor] = {}

    def held_bytes(self, modules: Sequence[ModuleShape], earlier: int, device: str) -> int:
        return 4 * sum(m.entries for m in modules) if earlier and self.options.weight else 0

    def begin_task(self, adapter: Trainable, earlier: Sequence[AdapterState]) -> None:
        self.release()  # first, so that the sums of two stages are never in memory together
        if not earlier or self.options.weight == 0:
            return
        import torch

        from nlora.models.lora_factors import stack

        for name, f in adapter.factors().items():
            joint = stack([state[name] for state in earlier])
            A, B = joint.A.to(f.A.device), joint.B.to(f.A.device)  # (Σ r_i, in), (out, Σ r_i)
            with torch.no_grad():
                self._squares[name] = (B @ A).square_()  # (out, in)

    def release(self) -> None:
        self._squares = {}

    def penalty(self, adapter: Trainable) -> Tensor | None:
        if not self._squares:
            return None
        from nlora.kernels.weighted_square import weighted_square_sum

        factors = adapter.factors()
        return self.options.weight * weighted_square_sum(
            [f.A for f in factors.values()],
            [f.B for f in factors.values()],
            [f.scaling for f in factors.values()],
            [beside(self._squares, name, f.A) for name, f in factors.items()],
        )
