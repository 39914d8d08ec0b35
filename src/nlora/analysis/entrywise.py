"""What is said of single entries: how many are large, where two updates meet, with which signs, with how much energy.

    e = entrywise([f, g], threshold=1e-4)
    e.both[0] / f.entries                         # collision rate of f and g
    e.unlike[0] / e.both[0]                       # sign conflict: share of the colliding entries with unlike signs
    e.energy[0] / (norm_f * norm_g)               # overlap energy, which needs no threshold

The entries of low-rank updates are formed once for all T adapters, in blocks that fit into the processor's cache, and
never again for each of the T(T-1)/2 pairs: from each block come T rows of bits, on which all pairs are counted
(`bits`), and one (T, T) product of the magnitudes, which holds the overlap of all pairs. Counts are exact; sums of
magnitudes are taken in float32 within a block and in float64 over the blocks (about six digits).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nlora.analysis.bits import Counts, counts, empty_words, pair_counts, put
from nlora.analysis.spectrum import stacked
from nlora.analysis.subspace import pairs_of
from nlora.factors import Factors

# Entries of all adapters in a block: 1 MiB of float32. Tried with 15 adapters of 1024 x 1024 on a processor with 2 MiB
# of second-level cache per core: 2**17 takes about the same, with twice the calls; 2**19 takes a fifth longer.
BLOCK_ENTRIES = 2**18
# Entries of one adapter whose bits are kept until they are counted: 64 KiB.
BITS_AT_ONCE = 2**19


@dataclass(frozen=True, slots=True, eq=False)
class Entrywise:
    """Of T updates of one module, and of their pairs i < j in the order of `subspace.pairs_of`.

    large: (T,) entries with |ΔW| > threshold. l1: (T,) Σ|ΔW|.
    both: (P,) entries at which both exceed the threshold. unlike: (P,) those of them with unlike signs.
    energy: (P,) Σ|ΔW_i|·|ΔW_j|.
    """

    large: Counts
    l1: NDArray[np.float64]
    both: Counts
    unlike: Counts
    energy: NDArray[np.float64]


def entrywise(factors: Sequence[Factors], threshold: float) -> Entrywise:
    """factors: T updates of one shape (out, in). threshold: absolute, >= 0; an entry counts when it is larger."""
    return _Walk(factors, threshold).result()


class _Walk:
    """One pass over the entries of T updates, rows of all of them at a time."""

    def __init__(self, factors: Sequence[Factors], threshold: float) -> None:
        A, B = stacked(factors, torch.float32)
        self._A, self._Bt = A, B.mT.contiguous()  # (T, r, in), (T, r, out): a faster factor than (T, out, r)
        self._threshold = np.float32(threshold)
        self._count, self._out, self._in = len(factors), B.shape[1], A.shape[2]
        self._rows = min(self._out, max(1, BLOCK_ENTRIES // max(1, self._count * self._in)))
        self._block = torch.empty(self._count * self._rows * self._in)
        self._flags = np.empty(self._count * self._rows * self._in, bool)
        self._gram = torch.zeros(self._count, self._count, dtype=torch.float64)
        self._l1 = torch.zeros(self._count, dtype=torch.float64)

    def result(self) -> Entrywise:
        pairs = pairs_of(self._count)
        large = np.zeros(self._count, np.int64)
        both, unlike = np.zeros(len(pairs[0]), np.int64), np.zeros(len(pairs[0]), np.int64)
        at_once = max(1, BITS_AT_ONCE // max(1, self._rows * self._in)) * self._rows
        for start in range(0, self._out, at_once):
            bits, signs = self._bits(start, min(start + at_once, self._out))
            large += counts(bits)
            more_both, more_unlike = pair_counts(bits, signs)
            both += more_both
            unlike += more_unlike
        return Entrywise(large, self._l1.numpy(), both, unlike, self._gram.numpy()[pairs])

    def _bits(self, start: int, stop: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        """Which entries of rows start to stop are large and which are negative; adds their magnitudes up."""
        blocks = -(-(stop - start) // self._rows)
        room = (stop - start) * self._in + 8 * blocks  # each block begins at a byte of its own
        bits, signs = empty_words(self._count, room), empty_words(self._count, room)
        offset = 0
        for row in range(start, stop, self._rows):
            D = self._entries(row, min(row + self._rows, stop))
            values = D.numpy()
            flags = self._flags[: D.numel()].reshape(D.shape)
            put(signs, offset, np.signbit(values, out=flags))
            D.abs_()
            self._gram += D @ D.mT
            self._l1 += D.sum(1)
            offset = put(bits, offset, np.greater(values, self._threshold, out=flags))
        return bits, signs

    def _entries(self, start: int, stop: int) -> Tensor:
        """The entries of some rows of every update: (T, rows·in), overwritten by the next call."""
        shape = self._count, stop - start, self._in
        block = self._block[: shape[0] * shape[1] * shape[2]].view(shape)
        torch.bmm(self._Bt[:, :, start:stop].mT, self._A, out=block)
        return block.view(self._count, -1)
