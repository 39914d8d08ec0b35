"""The squared Frobenius norm of low-rank updates ΔW = s·B·A, from r x r matrices alone.

Σ(s·B·A)² = s²·tr(Aᵀ·Bᵀ·B·A) = s²·Σ (A·Aᵀ)∘(Bᵀ·B), since both factors of the last product are symmetric. Nothing as
large as the update is computed, and autograd's gradients are already the closed forms 2s²·(Bᵀ·B)·A and 2s²·B·(A·Aᵀ).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nlora.kernels.blocks import working
from nlora.kernels.l1 import check_modules


def update_l2_squared_sum(As: Sequence[Tensor], Bs: Sequence[Tensor], scalings: Sequence[float]) -> Tensor:
    """Σ_m ‖scaling_m·B_m·A_m‖²_F over the updates of many modules: a scalar with gradients for A and B.

    As: (r, in) each; Bs: (out, r) each. Shapes, ranks, scalings, dtypes and devices may differ from module to module.
    Half-precision factors are computed in float32, and the result is float32 then. It is on the first module's device.
    Autocast does not lower the precision. The rounding is that of ‖A‖²·‖B‖², which matters only if B·A nearly cancels.

    Raises ValueError if there are no modules, the numbers of factors and scalings differ, or shapes do not fit.

    >>> update_l2_squared_sum([torch.ones(2, 3)], [torch.ones(4, 2)], [0.5])
    tensor(12.)
    """
    check_modules("update_l2_squared_sum", As, Bs, scalings)
    terms = []
    for A, B, scaling in zip(As, Bs, scalings, strict=True):
        with torch.autocast(A.device.type, enabled=False):
            A, B = working(A), working(B)
            terms.append(scaling**2 * ((A @ A.mT) * (B.mT @ B)).sum())  # (r, r), (r, r) -> ()
    device = terms[0].device  # a model may be spread over several
    return torch.stack([term.to(device) for term in terms]).sum()
