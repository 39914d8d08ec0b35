"""Singular values and vectors of low-rank updates, without forming an update.

With Aᵀ = Q_A·R_A and B = Q_B·R_B, ΔW = Q_B·(scaling·R_B·R_Aᵀ)·Q_Aᵀ. The middle matrix is only r×r; its singular values
are those of ΔW, and its singular vectors become those of ΔW through Q_B and Q_A. Exact up to rounding, in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nlora.analysis.buffers import Scratch
from nlora.models.lora_factors import LoraFactors

_FLOAT32_EPS = float(torch.finfo(torch.float32).eps)


@dataclass(frozen=True, slots=True, eq=False)
class Spectra:
    """Reduced SVDs of T updates of one shape: ΔW_t = U_t·diag(S_t)·V_tᵀ, float64.

    U: (T, out, k). S: (T, k), largest first. V: (T, in, k). k: the largest rank. Vectors whose singular value is zero
    up to the rounding of float32 factors are set to zero: they are not directions of the update.
    """

    U: Tensor
    S: Tensor
    V: Tensor


def reduced_svds(factors: Sequence[LoraFactors], scratch: Scratch | None = None) -> Spectra:
    """The SVDs of updates of one shape (out, in); their ranks may differ.

    U and V are valid until the next call with this `scratch`.
    """
    scratch = scratch or Scratch()
    A, B = stacked(factors, np.float64, scratch)
    Q_A, R_A = _qr(A.mT, "A", scratch)  # (T, in, r), (T, r, r)
    Q_B, R_B = _qr(B, "B", scratch)  # (T, out, r), (T, r, r)
    u, S, vT = torch.linalg.svd(R_B @ R_A.mT, full_matrices=False)
    rounding = S[:, :1] * _FLOAT32_EPS * A.shape[1]
    kept = rounding < S  # (T, k)
    U = _by_column("U", (*B.shape[:2], S.shape[1]), scratch)
    V = _by_column("V", (*A.mT.shape[:2], S.shape[1]), scratch)
    torch.bmm(u.mT * kept[:, :, None], Q_B.mT, out=U.mT)
    torch.bmm(vT * kept[:, :, None], Q_A.mT, out=V.mT)
    return Spectra(U, S, V)


def _qr(matrices: Tensor, name: str, scratch: Scratch) -> tuple[Tensor, Tensor]:
    """Reduced QR of matrices (T, n, r)."""
    count, n, r = matrices.shape
    k = min(n, r)
    out = _by_column(f"Q {name}", (count, n, k), scratch), _by_column(f"R {name}", (count, k, r), scratch)
    Q, R = torch.linalg.qr(matrices, out=out)
    return Q, R


def _by_column(name: str, shape: Sequence[int], scratch: Scratch) -> Tensor:
    """(T, n, k) of float64 with contiguous columns, as LAPACK wants them."""
    count, n, k = shape
    return scratch.tensor(name, (count, k, n), np.float64).mT


def stacked(
    factors: Sequence[LoraFactors], dtype: type[np.floating[Any]], scratch: Scratch | None = None
) -> tuple[Tensor, Tensor]:
    """A: (T, r, in) and scaling·B: (T, out, r) on the CPU, smaller ranks padded with zeros to the largest.

    Valid until the next call with this `scratch` and dtype.
    """
    scratch = scratch or Scratch()
    (out, n_in), count = factors[0].shape, len(factors)
    r = max(f.A.shape[0] for f in factors)
    A = scratch.tensor(f"A {dtype.__name__}", (count, r, n_in), dtype)
    Bt = scratch.tensor(f"B {dtype.__name__}", (count, r, out), dtype)
    torch.stack([_padded(f.A, r) for f in factors], out=A)
    torch.stack([_padded(f.B.mT, r) for f in factors], out=Bt)
    Bt *= torch.tensor([f.scaling for f in factors], dtype=Bt.dtype)[:, None, None]
    return A, Bt.mT


def _padded(factor: Tensor, r: int) -> Tensor:
    """The factor (rank, n) on the CPU, padded with rows of zeros to r."""
    factor = factor.detach().to("cpu")
    missing = r - factor.shape[0]
    return factor if missing == 0 else torch.constant_pad_nd(factor, (0, 0, 0, missing))


def nuclear_norm(S: Tensor) -> Tensor:
    """Sum of the singular values S (..., k): (...)."""
    return S.sum(-1)


def stable_rank(S: Tensor) -> Tensor:
    """‖ΔW‖²_F / ‖ΔW‖²_2, 1 to r; 0 for a zero update."""
    largest = S[..., 0].square()
    return torch.where(largest > 0, S.square().sum(-1) / largest.clamp_min(torch.finfo(S.dtype).tiny), 0.0)


def effective_rank(S: Tensor) -> Tensor:
    """The exponential of the entropy of S / ΣS (Roy and Vetterli, EUSIPCO 2007); 0 for a zero update."""
    total = S.sum(-1, keepdim=True)
    p = S / total.clamp_min(torch.finfo(S.dtype).tiny)
    return torch.where(total[..., 0] > 0, torch.special.entr(p).sum(-1).exp(), 0.0)
