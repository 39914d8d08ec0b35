"""What is said of single entries: how many are large, where two updates meet, with which signs, with how much energy.

    e = entrywise([f, g], threshold=1e-4)
    e.both[0] / f.entries                         # collision rate of f and g
    e.unlike[0] / e.both[0]                       # sign conflict: share of the colliding entries with unlike signs
    e.energy[0] / (norm_f * norm_g)               # overlap energy, which needs no threshold

The entries of low-rank updates are formed once for all T adapters, in tiles that fit into the processor's cache, and
never again for each of the T(T-1)/2 pairs: from each tile come T rows of bits, on which all pairs are counted
(`bits`), and one (T, T) product of the magnitudes, which holds the overlap of all pairs. Counts are exact; sums of
magnitudes are taken in float32 over some tiles and in float64 over all (about six digits).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from nlora.analysis.bitsets import Counts, Words, counts, filled, pair_counts, put, words_for
from nlora.analysis.buffers import Scratch
from nlora.analysis.pair_measures import pairs_of
from nlora.analysis.spectrum import stacked
from nlora.models.lora_factors import LoraFactors

# Entries of all adapters in a tile: 1 MiB of float32. Tried with 15 adapters of 1024 x 1024 on a processor with 2 MiB
# of second-level cache per core: half of it takes about as long on one thread and longer on two, twice a fifth longer.
TILE_ENTRIES = 2**18
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


def entrywise(factors: Sequence[LoraFactors], threshold: float, scratch: Scratch | None = None) -> Entrywise:
    """factors: T updates of one shape (out, in). threshold: absolute, >= 0; an entry counts when it is larger."""
    return _Walk(factors, threshold, scratch or Scratch()).result()


class _Walk:
    """One pass over the entries of T updates, a tile of all of them at a time.

    Threads that share modules out wait for one another at every call; so whatever can be made ready before the loop is.
    """

    def __init__(self, factors: Sequence[LoraFactors], threshold: float, scratch: Scratch) -> None:
        A, B = stacked(factors, np.float32, scratch)  # (T, r, in), (T, out, r)
        self._count = len(factors)
        self._threshold, self._scratch = np.float32(threshold), scratch
        self._gram = torch.zeros(self._count, self._count + 1, dtype=torch.float64)
        entries = TILE_ENTRIES // self._count
        widths = _cut(A.shape[2], max(1, math.isqrt(entries)))
        heights = _cut(B.shape[1], max(1, entries // widths[0]))
        # One band of columns after the other: its part of A stays in the cache.
        self._tiles = list(itertools.product(torch.split(A, widths, dim=2), torch.split(B, heights, dim=1)))
        shapes = list(itertools.product(widths, heights))
        rooms = {shape: _Room(self._count, *shape, scratch) for shape in set(shapes)}
        self._rooms = [rooms[shape] for shape in shapes]

    def result(self) -> Entrywise:
        pairs = pairs_of(self._count)
        large = np.zeros(self._count, np.int64)
        both, unlike = np.zeros(len(pairs[0]), np.int64), np.zeros(len(pairs[0]), np.int64)
        at_once = max(1, BITS_AT_ONCE // self._rooms[0].entries)
        for start in range(0, len(self._tiles), at_once):
            bits, signs = self._bits(slice(start, start + at_once))
            large += counts(bits)
            more_both, more_unlike = pair_counts(bits, signs, self._scratch)
            both += more_both
            unlike += more_unlike
        gram = self._gram.numpy()
        return Entrywise(large, gram[:, -1], both, unlike, gram[pairs])

    def _bits(self, some: slice) -> Words:
        """Which entries of some tiles are large, and which of those negative: (2, T, W). Adds their magnitudes up."""
        tiles, rooms = self._tiles[some], self._rooms[some]
        words: Words = self._scratch.array(
            "words", (2, self._count, sum(words_for(room.entries) for room in rooms)), np.uint64
        )
        gram = torch.zeros(self._count, self._count + 1)
        end = 0
        for (a, b), room in zip(tiles, rooms, strict=True):
            torch.bmm(b, a, out=room.tile)
            np.less(room.values, -self._threshold, out=room.negative)
            room.D.abs_()
            np.greater(room.values, self._threshold, out=room.large)
            gram.addmm_(room.D, room.columns)
            end = put(words, end, room.flags)
        self._gram += gram
        return filled(words, end)


class _Room:
    """Where tiles of one shape are formed.

    tile: (T, rows, columns). D: the same as (T, rows·columns); values: in numpy. columns: Dᵀ with a column of ones, so
    that D times it holds the sums of D, too. flags: (2, T, rows·columns): large, negative.
    """

    def __init__(self, count: int, width: int, height: int, scratch: Scratch) -> None:
        self.entries = width * height
        name = f"{height}x{width}"
        with_ones = torch.from_numpy(scratch.array(name, (count + 1, self.entries), np.float32))
        with_ones[-1] = 1.0
        self.D, self.columns = with_ones[:-1], with_ones.mT
        self.tile = self.D.view(count, height, width)
        self.values = self.D.numpy()
        self.flags = scratch.array(f"flags {name}", (2, count, self.entries), np.bool_)
        self.large, self.negative = self.flags


def _cut(size: int, most: int) -> list[int]:
    """Lengths of at most `most` that add up to `size`, as equal as may be, the longest first."""
    pieces = -(-size // most)
    return [size // pieces + (k < size % pieces) for k in range(pieces)]
