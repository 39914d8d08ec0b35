"""Which entries exceed a threshold, one bit each, and how many of them two adapters share.

    large = packed(np.abs(updates) > t)           # (T, entries) of bool -> (T, words) of 64 bits
    both, _ = pair_counts(large)                  # for each pair of the T rows

Sixty-four entries are compared at a time; set bits are counted by the processor's own instruction. A row may have up to
2³² bits.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]
Counts = NDArray[np.int64]

WORD_BITS = 64


def empty_words(rows: int, entries: int) -> Words:
    """Room for `entries` bits in each of `rows` rows, all zero."""
    return np.zeros((rows, -(-entries // WORD_BITS)), np.uint64)


def put(words: Words, offset: int, flags: NDArray[np.bool_]) -> int:
    """Pack flags (rows, n) into `words` from byte `offset` on; returns the byte where the next may start."""
    packed_flags = np.packbits(flags, axis=1)  # the last byte is filled up with zeros
    end = offset + int(packed_flags.shape[1])
    words.view(np.uint8)[:, offset:end] = packed_flags
    return end


def packed(flags: NDArray[np.bool_]) -> Words:
    """Flags (rows, n) as words; what is beyond n is zero."""
    words = empty_words(*flags.shape)
    put(words, 0, flags)
    return words


def counts(words: Words) -> Counts:
    """Set bits of each row: (rows,)."""
    found: Counts = np.bitwise_count(words).sum(1, dtype=np.uint32).astype(np.int64)
    return found


def pair_counts(large: Words, negative: Words | None = None) -> tuple[Counts, Counts]:
    """For each pair i < j, in the order of `subspace.pairs_of`: bits set in both, and of those the ones of unlike sign.

    large: (T, words). negative: likewise; without it, no sign is unlike.
    """
    rows = len(large)
    both_counts = np.zeros(rows * (rows - 1) // 2, np.int64)
    unlike_counts = np.zeros_like(both_counts)
    # Written over and over: new arrays for each row would be new pages of memory each time.
    shape = max(0, rows - 1), large.shape[1]
    buffers = np.empty(shape, np.uint64), np.empty(shape, np.uint64), np.empty(shape, np.uint8)
    end = 0
    for i in range(rows - 1):
        both, unlike, found = (buffer[i:] for buffer in buffers)
        start, end = end, end + len(both)
        np.bitwise_and(large[i], large[i + 1 :], out=both)
        both_counts[start:end] = np.bitwise_count(both, out=found).sum(1, dtype=np.uint32)
        if negative is not None:
            np.bitwise_xor(negative[i], negative[i + 1 :], out=unlike)
            np.bitwise_and(unlike, both, out=unlike)
            unlike_counts[start:end] = np.bitwise_count(unlike, out=found).sum(1, dtype=np.uint32)
    return both_counts, unlike_counts
