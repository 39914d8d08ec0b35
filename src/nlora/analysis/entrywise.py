"""Measures of single entries: how many are large, and where two updates collide, with which signs and energy.

The entries are formed once for all T adapters, not for each of the T(T-1)/2 pairs, in tiles that fit into the
processor's cache. Each tile becomes T rows of bits, in which all pairs are counted (`bitsets`), and one (T, T) product
of the magnitudes, which holds the overlap of all pairs. Counts are exact. Magnitudes are summed in float32 over a few
tiles and in float64 over all (about six digits).
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

# Entries of all adapters in a tile: 1 MiB of float32. With 15 adapters of 1024 x 1024 and 2 MiB of L2 cache per core,
# half the size took as long on one thread and longer on two; twice the size took a fifth longer.
TILE_ENTRIES = 2**18
# Entries of one adapter whose bits are collected before they are counted: 64 KiB.
BITS_AT_ONCE = 2**19


@dataclass(frozen=True, slots=True, eq=False)
class Entrywise:
    """T updates of one module, and their pairs i < j in the order of `pairs_of`.

    large: (T,) number of entries with |ΔW| > threshold. l1: (T,) Σ|ΔW|.
    both: (P,) number of entries where both exceed the threshold. unlike: (P,) those of them with unlike signs.
    energy: (P,) Σ|ΔW_i|·|ΔW_j|.
    """

    large: Counts
    l1: NDArray[np.float64]
    both: Counts
    unlike: Counts
    energy: NDArray[np.float64]


def entrywise(factors: Sequence[LoraFactors], threshold: float, scratch: Scratch | None = None) -> Entrywise:
    """factors: T updates of one shape (out, in). threshold: absolute, >= 0; an entry counts if it is larger."""
    return _Walk(factors, threshold, scratch or Scratch()).result()


class _Walk:
    """One pass over the entries of T updates, a tile of all of them at a time.

    Python's threads wait for one another between calls, so everything possible is prepared before the loop.
    """

    def __init__(self, factors: Sequence[LoraFactors], threshold: float, scratch: Scratch) -> None:
        A, B = stacked(factors, np.float32, scratch)  # (T, r, in), (T, out, r)
        self._count = len(factors)
        self._threshold, self._scratch = np.float32(threshold), scratch
        self._gram = torch.zeros(self._count, self._count + 1, dtype=torch.float64)
        entries = TILE_ENTRIES // self._count
        widths = _cut(A.shape[2], max(1, math.isqrt(entries)))
        heights = _cut(B.shape[1], max(1, entries // widths[0]))
        # By bands of columns, so that a band's part of A stays in the cache.
        self._tiles = list(itertools.product(torch.split(A, widths, dim=2), torch.split(B, heights, dim=1)))
        shapes = list(itertools.product(widths, heights))
        buffers = {shape: _TileBuffers(self._count, *shape, scratch) for shape in set(shapes)}
        self._buffers = [buffers[shape] for shape in shapes]

    def result(self) -> Entrywise:
        pairs = pairs_of(self._count)
        large = np.zeros(self._count, np.int64)
        both, unlike = np.zeros(len(pairs[0]), np.int64), np.zeros(len(pairs[0]), np.int64)
        at_once = max(1, BITS_AT_ONCE // self._buffers[0].entries)
        for start in range(0, len(self._tiles), at_once):
            bits, signs = self._bits(slice(start, start + at_once))
            large += counts(bits)
            more_both, more_unlike = pair_counts(bits, signs, self._scratch)
            both += more_both
            unlike += more_unlike
        gram = self._gram.numpy()
        return Entrywise(large, gram[:, -1], both, unlike, gram[pairs])

    def _bits(self, some: slice) -> Words:
        """Large entries of some tiles, and negative ones: (2, T, W). Adds up their magnitudes."""
        tiles, buffers = self._tiles[some], self._buffers[some]
        words: Words = self._scratch.array(
            "words", (2, self._count, sum(words_for(buffer.entries) for buffer in buffers)), np.uint64
        )
        gram = torch.zeros(self._count, self._count + 1, dtype=torch.float32)
        end = 0
        for (a, b), buffer in zip(tiles, buffers, strict=True):
            torch.bmm(b, a, out=buffer.tile)
            np.less(buffer.values, -self._threshold, out=buffer.negative)
            buffer.D.abs_()
            np.greater(buffer.values, self._threshold, out=buffer.large)
            gram.addmm_(buffer.D, buffer.columns)
            end = put(words, end, buffer.flags)
        self._gram += gram
        return filled(words, end)


class _TileBuffers:
    """The buffers for tiles of one shape.

    tile: (T, rows, columns). D: a view of it, (T, rows·columns); values: the same in numpy. columns: Dᵀ with a column
    of ones, so that D times it also holds the sums of D. flags: (2, T, rows·columns): large, negative.
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
    """Lengths of at most `most` that add up to `size`, as equal as possible, longest first."""
    pieces = -(-size // most)
    return [size // pieces + (k < size % pieces) for k in range(pieces)]
