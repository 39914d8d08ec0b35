"""Measures of two updates as matrices: cosine, orthogonality, and angles between their row and column spaces.

Everything comes from r×r products: with ΔW = U·S·Vᵀ, ⟨ΔW_i,ΔW_j⟩ and ‖ΔW_iᵀΔW_j‖_F need only U_iᵀU_j and V_iᵀV_j, whose
singular values are also the cosines of the principal angles. Exact up to rounding, in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nlora.analysis.buffers import Scratch
from nlora.analysis.spectrum import Spectra, reduced_svds, stacked
from nlora.models.lora_factors import LoraFactors

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class PairMeasures:
    """Every pair i < j of T updates of one module, in the order of `pairs_of`: (P,) each.

    orthogonality: ‖A_i·A_jᵀ‖²_F, as in O-LoRA (arXiv 2310.14152). It depends on how a rank-r matrix is split into B and
        A, so it is a property of the factors, not of the update.
    inner: ⟨ΔW_i,ΔW_j⟩, the sum of the products of their entries.
    product: ‖ΔW_iᵀ·ΔW_j‖²_F.
    row_angle, column_angle: smallest principal angle of the row and of the column spaces, in degrees: 0 if the spaces
        share a direction, 90 if every direction of one is orthogonal to the other; NaN if an update is zero.
    """

    orthogonality: Floats
    inner: Floats
    product: Floats
    row_angle: Floats
    column_angle: Floats


def pairs_of(count: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The pairs i < j of `count` items: (0,1), (0,2), ..., (1,2), ..."""
    first, second = np.triu_indices(count, 1)
    return first, second


def pair_measures(
    factors: Sequence[LoraFactors], spectra: Spectra | None = None, scratch: Scratch | None = None
) -> PairMeasures:
    """factors: T updates of one shape. spectra: their SVDs, if already known."""
    spectra = spectra or reduced_svds(factors)
    first, second = (torch.from_numpy(index) for index in pairs_of(len(factors)))
    across_columns = _products(spectra.U)[first, second]  # (P, k, k): U_iᵀ·U_j
    across_rows = _products(spectra.V)[first, second]  # (P, k, k): V_iᵀ·V_j
    weighted = spectra.S[first, :, None] * across_columns * spectra.S[second, None, :]
    A, _ = stacked(factors, np.float64, scratch)
    shared = _products(A.mT).square().sum((2, 3))  # (T, T): ‖A_i·A_jᵀ‖²_F
    return PairMeasures(
        orthogonality=shared[first, second].numpy(),
        inner=(weighted * across_rows).sum((1, 2)).numpy(),
        product=weighted.square().sum((1, 2)).numpy(),
        row_angle=_smallest(across_rows, spectra.S, first, second),
        column_angle=_smallest(across_columns, spectra.S, first, second),
    )


def principal_angles(f: LoraFactors, g: LoraFactors) -> tuple[Floats, Floats]:
    """All principal angles of the row spaces and of the column spaces of two updates, in degrees, smallest first.

    As many as the smaller of the two ranks; none for a zero update.
    """
    spectra = reduced_svds([f, g])
    directions = int((spectra.V.square().sum(1) > 0).sum(1).min())
    cosines = [torch.linalg.svdvals(Q[0].mT @ Q[1])[:directions] for Q in (spectra.V, spectra.U)]
    rows, columns = (_degrees(c) for c in cosines)
    return rows, columns


def _products(Q: Tensor) -> Tensor:
    """Q_iᵀ·Q_j for all i and j from one product. Q: (T, n, k); the result: (T, T, k, k)."""
    count, n, k = Q.shape
    wide = Q.mT.reshape(count * k, n)  # no copy if columns are contiguous
    return (wide @ wide.mT).view(count, k, count, k).transpose(1, 2)


def _smallest(products: Tensor, S: Tensor, first: Tensor, second: Tensor) -> Floats:
    """Smallest angles of P pairs from Q_iᵀ·Q_j (P, k, k); NaN for an update whose S (T, k) is zero."""
    angles = _degrees(torch.linalg.svdvals(products)[:, 0])
    nonzero = S[:, 0] > 0
    angles[~(nonzero[first] & nonzero[second]).numpy()] = np.nan
    return angles


def _degrees(cosines: Tensor) -> Floats:
    angles: Floats = torch.rad2deg(torch.arccos(cosines.clamp(-1.0, 1.0))).numpy()
    return angles
