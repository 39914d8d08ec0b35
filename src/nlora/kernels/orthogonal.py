"""O-LoRA's penalties (arXiv 2310.14152): how much new rows of A point along the rows of earlier tasks.

- `row_overlap_l1`: Σ|A_old·Aᵀ|, as in the released code.
- `row_overlap_l2_squared`: Σ(A_old·Aᵀ)², as in the paper.
- `frobenius_norm`: ‖B‖_F, whose gradient at B = 0 is 0.

A is (r, in), as PEFT stores it, and A_old stacks the rows of all earlier tasks: (Σ r_i, in). The product P = A_old·Aᵀ
is (Σ r_i, r): only the factors A are compared, without scaling and B. Nothing as large as the update is computed, and
autograd's gradients are already the closed forms sign(P)ᵀ·A_old and 2·Pᵀ·A_old.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nlora.kernels.blocks import working


def row_overlap_l1(A_old: Tensor, A: Tensor) -> Tensor:
    """Σ|A_old·Aᵀ| over all pairs of an old and a new row: a scalar with a gradient for A.

    A_old: (r_old, in), constant; A: (r, in). Half-precision factors are computed in float32. The gradient of a pair
    that is exactly orthogonal is 0. Raises ValueError if the shapes do not fit.
    Source: the released code of arXiv 2310.14152.

    >>> row_overlap_l1(torch.eye(3)[:2], torch.tensor([[1.0, -2.0, 5.0]]))
    tensor(3.)
    """
    return _products("row_overlap_l1", A_old, A).abs().sum()


def row_overlap_l2_squared(A_old: Tensor, A: Tensor) -> Tensor:
    """Σ(A_old·Aᵀ)², which is Σ_i ‖A_i·Aᵀ‖²_F over the earlier tasks i: a scalar with a gradient for A.

    Shapes, precision and errors as for `row_overlap_l1`. Source: arXiv 2310.14152, the orthogonality loss.

    >>> row_overlap_l2_squared(torch.eye(3)[:2], torch.tensor([[1.0, -2.0, 5.0]]))
    tensor(5.)
    """
    return _products("row_overlap_l2_squared", A_old, A).square().sum()


def frobenius_norm(factor: Tensor) -> Tensor:
    """‖factor‖_F, not squared: a scalar with a gradient, which is 0 (not NaN) if the whole factor is 0."""
    with torch.autocast(factor.device.type, enabled=False):
        norm: Tensor = torch.linalg.vector_norm(working(factor))
    return norm


def _products(name: str, A_old: Tensor, A: Tensor) -> Tensor:
    """A_old·Aᵀ: (r_old, r). Raises ValueError if A_old is not (r_old, in) or A is not (r, in)."""
    if A_old.dim() != 2 or A.dim() != 2 or A_old.shape[1] != A.shape[1]:
        old, new = ("x".join(str(size) for size in tensor.shape) for tensor in (A_old, A))
        raise ValueError(
            f"{name} needs A_old of shape (r_old, in) and A of shape (r, in), but A_old is {old} and A is {new}"
        )
    with torch.autocast(A.device.type, enabled=False):
        rows = working(A)
        return A_old.detach().to(rows.dtype) @ rows.mT
