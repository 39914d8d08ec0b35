"""Density and collision rate as functions of the threshold, from a seeded sample of the entries.

The rates at the chosen threshold are exact and come from `entrywise`; curves of K thresholds over all entries would
cost K times as much. The sample of a module is a random sub-matrix, the same rows and columns for all adapters. Every
entry is equally likely to be in it, so the estimate is unbiased. With about two million entries in total, rates are off
by a few tenths of a percentage point.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from nlora.analysis.bitsets import counts, packed, pair_counts
from nlora.analysis.buffers import Scratch
from nlora.analysis.pair_measures import pairs_of
from nlora.analysis.spectrum import stacked
from nlora.models.lora_factors import LoraFactors

Floats = NDArray[np.float64]

FACTORS: Floats = 10.0 ** (np.arange(-24, 9) / 8)
"""Thresholds in units of a root mean square: 0.001 to 10, eight per power of ten."""
SAMPLED_ENTRIES = 2**21
"""Per adapter, over all modules."""
SEED = 0


def sample(
    factors: Sequence[LoraFactors], entries: int, seed: int, scratch: Scratch | None = None
) -> NDArray[np.float32]:
    """|ΔW| on a random sub-matrix of about `entries` entries, the same for all T updates of one shape: (T, n).

    Valid until the next call with this `scratch`.
    """
    out, n_in = factors[0].shape
    rows = min(out, max(1, math.isqrt(entries)))
    columns = min(n_in, max(1, entries // rows))
    rows = min(out, max(1, entries // columns))  # more rows if there are few columns
    generator = torch.Generator().manual_seed(seed)
    which_rows = torch.randperm(out, generator=generator)[:rows]
    which_columns = torch.randperm(n_in, generator=generator)[:columns]
    scratch = scratch or Scratch()
    A, B = stacked(factors, np.float32, scratch)
    count, r = A.shape[:2]
    a = scratch.tensor("sampled A", (count, r, columns), np.float32)
    bt = scratch.tensor("sampled B", (count, r, rows), np.float32)
    torch.index_select(A, 2, which_columns, out=a)
    torch.index_select(B.mT, 2, which_rows, out=bt)
    D = scratch.tensor("sample", (count, rows, columns), np.float32)
    torch.bmm(bt.mT, a, out=D).abs_()
    magnitudes: NDArray[np.float32] = D.flatten(1).numpy()
    return magnitudes


class CurveSums:
    """Sums over modules of the shares of entries that exceed each threshold.

    thresholds: (T, K), row t for update t. `present` lists the updates that have a module, in order.
    """

    def __init__(self, thresholds: Floats) -> None:
        self._thresholds = thresholds.astype(np.float32)
        count, points = thresholds.shape
        self._pair_index = {pair: p for p, pair in enumerate(zip(*pairs_of(count), strict=True))}
        self._large = np.zeros((count, points))
        self._entries = np.zeros(count)
        self._both = np.zeros((len(self._pair_index), points))
        self._pair_entries = np.zeros(len(self._pair_index))

    def add(self, shares: tuple[Floats, Floats], present: Sequence[int], weight: int) -> None:
        """shares: the result of `shares` for a module of `weight` entries."""
        large, both = shares
        here = list(present)
        first, second = pairs_of(len(here))
        pairs = [self._pair_index[here[i], here[j]] for i, j in zip(first, second, strict=True)]
        self._large[here] += weight * large
        self._entries[here] += weight
        self._both[pairs] += weight * both
        self._pair_entries[pairs] += weight

    def shares(
        self, magnitudes: NDArray[np.float32], present: Sequence[int], scratch: Scratch | None = None
    ) -> tuple[Floats, Floats]:
        """Shares of a module's sample (T', n) above each threshold: by update (T', K) and by pair (P', K)."""
        scratch = scratch or Scratch()
        thresholds = self._thresholds[list(present)]  # (T', K)
        entries = magnitudes.shape[1]
        flags = scratch.array("curve flags", (*thresholds.shape, entries), np.bool_)
        np.greater(magnitudes[:, None], thresholds[:, :, None], out=flags)
        words = packed(flags, scratch)  # (T', K, W)
        return counts(words) / entries, pair_counts(words, scratch=scratch)[0] / entries

    def density(self) -> Floats:
        """(T, K)."""
        return self._large / self._entries[:, None]

    def collision(self) -> Floats:
        """(P, K); NaN for a pair without a common module."""
        entries = np.where(self._pair_entries, self._pair_entries, np.nan)
        return self._both / entries[:, None]
