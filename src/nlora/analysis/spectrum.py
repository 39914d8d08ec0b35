"""The singular values and vectors of low-rank updates, without ever forming an update.

    S = reduced_svds([f]).S[0]                    # singular values of ΔW = scaling·B·A, largest first
    nuclear_norm(S), stable_rank(S), effective_rank(S)

With Aᵀ = Q_A·R_A and B = Q_B·R_B, ΔW = Q_B·(scaling·R_B·R_Aᵀ)·Q_Aᵀ, and the middle is only r×r: its singular values are
those of ΔW, its singular vectors turned by Q_B and Q_A are those of ΔW. Everything here is exact but for rounding, in
float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nlora.factors import Factors

_FLOAT32_EPS = float(torch.finfo(torch.float32).eps)


@dataclass(frozen=True, slots=True, eq=False)
class Spectra:
    """Reduced SVDs of T updates of one shape: ΔW_t = U_t·diag(S_t)·V_tᵀ, float64.

    U: (T, out, k). S: (T, k), largest first. V: (T, in, k). k: the largest rank. Vectors whose singular value is
    zero but for the rounding of float32 factors are set to zero: they are no direction of the update.
    """

    U: Tensor
    S: Tensor
    V: Tensor


def reduced_svds(factors: Sequence[Factors]) -> Spectra:
    """The SVDs of updates of one shape (out, in); their ranks may differ."""
    A, B = stacked(factors, torch.float64)
    Q_A, R_A = torch.linalg.qr(A.mT)  # (T, in, r), (T, r, r)
    Q_B, R_B = torch.linalg.qr(B)  # (T, out, r), (T, r, r)
    u, S, vT = torch.linalg.svd(R_B @ R_A.mT, full_matrices=False)
    rounding = S[:, :1] * _FLOAT32_EPS * A.shape[1]
    kept = (rounding < S)[:, None]  # (T, 1, k)
    return Spectra((Q_B @ u) * kept, S, (Q_A @ vT.mT) * kept)


def stacked(factors: Sequence[Factors], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A: (T, r, in) and scaling·B: (T, out, r) on the CPU, smaller ranks filled up with zeros to the largest."""
    r = max(f.A.shape[0] for f in factors)
    out, n_in = factors[0].shape
    A = torch.zeros(len(factors), r, n_in, dtype=dtype)
    B = torch.zeros(len(factors), out, r, dtype=dtype)
    for t, f in enumerate(factors):
        A[t, : f.A.shape[0]] = f.A.detach()
        B[t, :, : f.A.shape[0]] = f.B.detach()
        B[t] *= f.scaling
    return A, B


def nuclear_norm(S: Tensor) -> Tensor:
    """Sum of the singular values S (..., k): (...)."""
    return S.sum(-1)


def stable_rank(S: Tensor) -> Tensor:
    """‖ΔW‖²_F / ‖ΔW‖²_2: how many singular values are as large as the largest; 0 for a zero update."""
    largest = S[..., 0].square()
    return torch.where(largest > 0, S.square().sum(-1) / largest.clamp_min(torch.finfo(S.dtype).tiny), 0.0)


def effective_rank(S: Tensor) -> Tensor:
    """exp of the entropy of S / ΣS (Roy and Vetterli, EUSIPCO 2007); 0 for a zero update."""
    total = S.sum(-1, keepdim=True)
    p = S / total.clamp_min(torch.finfo(S.dtype).tiny)
    return torch.where(total[..., 0] > 0, torch.special.entr(p).sum(-1).exp(), 0.0)
