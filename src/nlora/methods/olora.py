"""O-LoRA: each task's rows of A are held orthogonal to the rows of all earlier tasks.

Source: arXiv 2310.14152. A fresh adapter per task, the earlier ones folded in, and added to the loss of an optimizer
step

    l1:          weight · Σ_modules Σ|A_old·Aᵀ|           as the released code computes it
    l2_squared:  weight · Σ_modules Σ_i ‖A_i·Aᵀ‖²_F       as the paper writes it
    both:        + norm_weight · Σ_modules (‖A‖_F + ‖B‖_F)

A_old holds the rows of all earlier tasks' A, one below the other. The factors are taken as they are: neither the
scaling nor B enters, here as in the released code. The first task has only the norms.

Departures from the released code: earlier updates are folded into the frozen weight instead of kept as adapters of
growing rank, whose inputs get the dropout too; the penalty's weight does not depend on gradient accumulation.
Penalties and gradients equal the released ones (a test compares them with its numbers).

Pitfalls:
- Orthogonal rows are not disjoint ones: updates of different tasks still change the same entries of a weight.
- A shrinks to satisfy the penalty, and the task is then learned by a larger B. norm_weight holds that back.
- A starts at random and not at zero, so the penalty is large at the first step, and gradient clipping sees it: most of
  the first clipped steps is penalty.
- in features hold at most in orthogonal rows: rank times tasks should stay below the narrowest layer's in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from nlora.methods._earlier import updates_of
from nlora.methods.base import Method, MethodOptions

if TYPE_CHECKING:
    from torch import Tensor

    from nlora.models.lora_adapter import AdapterState
    from nlora.models.trainable import Trainable


class OloraOptions(MethodOptions):
    """How strongly new rows of A are held orthogonal to old ones, and how their products are summed."""

    weight: float = Field(
        0.5,
        ge=0,
        allow_inf_nan=False,
        description="λ1, what the orthogonality penalty is multiplied with; 0, with norm_weight 0: exactly "
        "incremental LoRA. The released orders 1 to 3 use 0.5 (with norm l1).",
    )
    norm: Literal["l1", "l2_squared"] = Field(
        "l1",
        description="Of the products of an old and a new row of A: l1, the sum of their absolute values, as the "
        "released code computes it; l2_squared, the sum of their squares, as the paper writes it.",
    )
    norm_weight: float = Field(
        0.0,
        ge=0,
        allow_inf_nan=False,
        description="λ2, what the sum of the new factors' Frobenius norms (not squared) is multiplied with. The "
        "released orders use 0, but for some tasks of the long one.",
    )


class Olora(Method):
    """The products of the new rows of A with those of all earlier tasks."""

    Options: ClassVar[type[MethodOptions]] = OloraOptions

    def __init__(self, options: MethodOptions) -> None:
        super().__init__(options)
        assert isinstance(options, OloraOptions)
        self._weight, self._norm, self._norm_weight = options.weight, options.norm, options.norm_weight
        self._old: dict[str, Tensor] = {}

    def begin_task(self, adapter: Trainable, earlier: Sequence[AdapterState]) -> None:
        self._old = {}
        if not earlier or self._weight == 0:
            return
        import torch

        for name, f in adapter.factors().items():
            rows = [old.A.to(f.A.device) for old in updates_of(name, earlier)]
            self._old[name] = torch.cat(rows)  # (Σ r_i, in)

    def penalty(self, adapter: Trainable) -> Tensor | None:
        if not self._old and self._norm_weight == 0:
            return None
        import torch

        from nlora.kernels.orthogonal import frobenius_norm, row_overlap_l1, row_overlap_l2_squared

        overlap = row_overlap_l1 if self._norm == "l1" else row_overlap_l2_squared
        terms = []
        for name, f in adapter.factors().items():
            if self._old:
                terms.append(self._weight * overlap(self._old[name], f.A))
            if self._norm_weight:
                terms.append(self._norm_weight * (frobenius_norm(f.A) + frobenius_norm(f.B)))
        device = terms[0].device  # one model may lie on several
        return torch.stack([term.to(device) for term in terms]).sum()
