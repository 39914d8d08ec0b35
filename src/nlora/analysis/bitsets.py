"""Flags of entries above a threshold, one bit each, and how many of them two adapters share.

>>> pair_counts(packed(np.array([[True, False, True], [True, True, True]])))[0].tolist()
[2]

One operation compares 64 entries, and set bits are counted by the processor's own instruction. A row holds up to
2³² bits.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nlora.analysis.buffers import Scratch

Words = NDArray[np.uint64]
Counts = NDArray[np.int64]

WORD_BITS = 64
_WORD_BYTES = WORD_BITS // 8


def words_for(entries: int) -> int:
    """The number of words that hold this many bits."""
    return -(-entries // WORD_BITS)


def put(words: Words, offset: int, flags: NDArray[np.bool_]) -> int:
    """Packs flags (..., n) into `words` (..., W) from byte `offset`; returns the byte after them."""
    packed_flags = np.packbits(flags, axis=-1)  # the last byte is padded with zeros
    end = offset + int(packed_flags.shape[-1])
    words.view(np.uint8)[..., offset:end] = packed_flags
    return end


def filled(words: Words, end: int) -> Words:
    """The words that hold bytes up to `end`, zero after it."""
    used = -(-end // _WORD_BYTES)
    words.view(np.uint8)[..., end : used * _WORD_BYTES] = 0
    return words[..., :used]


def packed(flags: NDArray[np.bool_], scratch: Scratch | None = None) -> Words:
    """Flags (..., n) as words (..., W), zero after bit n. Valid until the next call with this `scratch`."""
    shape = (*flags.shape[:-1], words_for(flags.shape[-1]))
    words: Words = (scratch or Scratch()).array("packed", shape, np.uint64)
    return filled(words, put(words, 0, flags))


def counts(words: Words) -> Counts:
    """The number of set bits of words (..., W): (...)."""
    found: Counts = np.bitwise_count(words).sum(-1, dtype=np.uint32).astype(np.int64)
    return found


def pair_counts(
    large: Words, negative: Words | None = None, scratch: Scratch | None = None
) -> tuple[Counts, Counts]:
    """For each pair i < j, in the order of `pairs_of`: the bits set in both, and those of them with unlike signs.

    large, negative: (T, ..., W); without `negative` no signs are unlike. Both results: (P, ...).
    """
    scratch = scratch or Scratch()
    rows, *others = large.shape[:-1]
    both_counts = np.zeros((rows * (rows - 1) // 2, *others), np.int64)
    unlike_counts = np.zeros_like(both_counts)
    end = 0
    for i in range(rows - 1):
        first, second = large[i], large[i + 1 :]
        start, end = end, end + len(second)
        both = scratch.array("both", second.shape, np.uint64)
        found = scratch.array("found", second.shape, np.uint8)
        np.bitwise_and(first, second, out=both)
        both_counts[start:end] = np.bitwise_count(both, out=found).sum(-1, dtype=np.uint32)
        if negative is not None:
            unlike = scratch.array("unlike", second.shape, np.uint64)
            np.bitwise_xor(negative[i], negative[i + 1 :], out=unlike)
            np.bitwise_and(unlike, both, out=unlike)
            unlike_counts[start:end] = np.bitwise_count(unlike, out=found).sum(-1, dtype=np.uint32)
    return both_counts, unlike_counts
