"""O-LoRA: each task's rows of A are kept orthogonal to the rows of all earlier tasks.

Source: arXiv 2310.14152. A fresh adapter per task, with the earlier ones merged into the backbone. Added to the loss
of an optimizer step:

    l1:          weight · Σ_modules Σ|A_old·Aᵀ|           as the released code computes it
    l2_squared:  weight · Σ_modules Σ_i ‖A_i·Aᵀ‖²_F       as the paper writes it
    both:        + norm_weight · Σ_modules (‖A‖_F + ‖B‖_F)

A_old stacks the rows of all earlier tasks' A. Neither the scaling nor B is part of the penalty, as in the released
code. The first task has only the norms.

Departures from the released code: earlier updates are merged into the frozen weight instead of being kept as adapters
of growing rank, whose inputs get the dropout too; the penalty's weight does not depend on gradient accumulation.
Penalties and gradients equal the released ones (a test compares them with numbers from the released code).

Pitfalls:
- Orthogonal is not disjoint: updates of different tasks still change the same entries of a weight.
- A can shrink to reduce the penalty, while a larger B learns the task. norm_weight counteracts that.
- A starts random, not zero, so the penalty is large at the first step. Gradient clipping includes it: the first clipped
  steps are mostly penalty.
- A layer with n inputs has room for only n orthogonal rows: keep rank times tasks below the narrowest layer's n.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from nlora.methods._devices import beside
from nlora.methods.base import Method, MethodOptions

if TYPE_CHECKING:
    from torch import Tensor

    from nlora.models.lora_adapter import AdapterState, ModuleShape
    from nlora.models.trainable import Trainable


class OloraOptions(MethodOptions):
    """How strongly new rows of A are kept orthogonal to old ones, and how their products are summed."""

    weight: float = Field(
        0.5,
        ge=0,
        allow_inf_nan=False,
        description="λ1, the weight of the orthogonality penalty; 0, with norm_weight 0: exactly incremental LoRA. "
        "The released orders 1 to 3 use 0.5 (with norm l1).",
    )
    norm: Literal["l1", "l2_squared"] = Field(
        "l1",
        description="How the products of old and new rows of A are summed: l1, their absolute values, as in the "
        "released code; l2_squared, their squares, as in the paper.",
    )
    norm_weight: float = Field(
        0.0,
        ge=0,
        allow_inf_nan=False,
        description="λ2, the weight of the sum of the new factors' Frobenius norms (not squared). The released orders "
        "use 0, except for some tasks of the long one.",
    )


class Olora(Method[OloraOptions]):
    """Penalizes the products of the new rows of A with those of all earlier tasks."""

    def __init__(self, options: OloraOptions) -> None:
        super().__init__(options)
        self._old: dict[str, Tensor] = {}

    def held_bytes(self, modules: Sequence[ModuleShape], earlier: int, device: str) -> int:
        return 4 * earlier * sum(m.r * m.in_features for m in modules) if self.options.weight else 0

    def begin_task(self, adapter: Trainable, earlier: Sequence[AdapterState]) -> None:
        self.release()
        if not earlier or self.options.weight == 0:
            return
        import torch

        for name, f in adapter.factors().items():
            rows = [state[name].A.to(f.A.device) for state in earlier]
            self._old[name] = torch.cat(rows)  # (Σ r_i, in)

    def release(self) -> None:
        self._old = {}

    def penalty(self, adapter: Trainable) -> Tensor | None:
        if not self._old and self.options.norm_weight == 0:
            return None
        import torch

        from nlora.kernels.orthogonal import frobenius_norm, row_overlap_l1, row_overlap_l2_squared

        overlap = row_overlap_l1 if self.options.norm == "l1" else row_overlap_l2_squared
        terms = []
        for name, f in adapter.factors().items():
            if self._old:
                terms.append(self.options.weight * overlap(beside(self._old, name, f.A), f.A))
            if self.options.norm_weight:
                terms.append(self.options.norm_weight * (frobenius_norm(f.A) + frobenius_norm(f.B)))
        device = terms[0].device  # a model may be spread over several
        return torch.stack([term.to(device) for term in terms]).sum()
