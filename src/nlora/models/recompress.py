"""The best approximation of an update by one of a smaller rank (Eckart and Young), and what it loses.

>>> update = LoraFactors(torch.eye(2, 3), torch.tensor([[3.0, 0.0], [0.0, 1.0]]), 1.0)  # singular values 3, 1
>>> found = recompress(update, rank=1)
>>> found.factors.A.shape, round(found.lost / found.total, 6)
(torch.Size([1, 3]), 0.1)

With Aᵀ = Q_A·R_A and B = Q_B·R_B, ΔW = Q_B·(scaling·R_B·R_Aᵀ)·Q_Aᵀ, so only the small matrix in the middle is
decomposed and ΔW is never formed. Computed in float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nlora.models.lora_factors import LoraFactors


@dataclass(frozen=True, slots=True, eq=False)
class Recompressed:
    """factors: float32, scaling 1, both with the square roots of the singular values. lost, total: squared norms."""

    factors: LoraFactors
    lost: float
    total: float


def recompress(update: LoraFactors | Tensor, rank: int) -> Recompressed:
    """The closest update of at most this rank. update: the factors, or a whole ΔW (out, in)."""
    U, S, Vt = reduced_svd(update)
    keep = min(rank, S.shape[0])
    root = S[:keep].sqrt()
    factors = LoraFactors(
        (root[:, None] * Vt[:keep]).float().contiguous(), (U[:, :keep] * root).float().contiguous(), 1.0
    )
    squares = S.square()
    return Recompressed(factors, float(squares[keep:].sum()), float(squares.sum()))


def reduced_svd(update: LoraFactors | Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U (out, k), S (k,) largest first, Vᵀ (k, in) on the CPU, float64. k: the smaller side, or the factors' rank."""
    if isinstance(update, Tensor):
        return tuple(torch.linalg.svd(update.detach().cpu().double(), full_matrices=False))
    A, B = update.A.detach().cpu().double(), update.B.detach().cpu().double()
    Q_A, R_A = torch.linalg.qr(A.mT)  # (in, r), (r, r)
    Q_B, R_B = torch.linalg.qr(B)  # (out, r), (r, r)
    u, S, vt = torch.linalg.svd(update.scaling * (R_B @ R_A.mT), full_matrices=False)
    return Q_B @ u, S, vt @ Q_A.mT
