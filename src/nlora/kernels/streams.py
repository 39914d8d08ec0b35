"""Random numbers that depend on what they are for, and not on what was drawn before.

A stream is numpy's Philox, a generator whose numbers are a function of a key and a counter. The key and the upper half
of the counter say what the numbers are for; the lower half counts the numbers. Two streams therefore never overlap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_WORD = 2**64


@dataclass(frozen=True, slots=True)
class Streams:
    """The streams of the rows of one input.

    key: two numbers, such as a seed and a step. layer: the number of the layer that has the input.
    spans: (begin, end, name) of rows that draw one after another from the stream of this name; together, all rows.
    backwards: the last row of a span draws first.
    """

    key: tuple[int, int]
    layer: int
    spans: Sequence[tuple[int, int, int]]
    backwards: bool = False

    def draw(self, numbers: int) -> NDArray[np.uint64]:
        """(rows, numbers) of 64 random bits.

        >>> two, one = Streams((1, 2), 3, [(0, 1, 7), (1, 3, 8)]), Streams((1, 2), 3, [(0, 2, 8)])
        >>> bool((two.draw(5)[1:] == one.draw(5)).all())
        True
        """
        found = np.empty((max(end for _, end, _ in self.spans), numbers), np.uint64)
        philox: Any = np.random.Philox(0)
        for begin, end, name in self.spans:
            philox.state = _state(self.key, self.layer, name)
            rows = philox.random_raw((end - begin) * numbers).reshape(-1, numbers)
            found[begin:end] = rows[::-1] if self.backwards else rows
        return found


def _state(key: tuple[int, int], layer: int, name: int) -> dict[str, Any]:
    """The state of a Philox at the beginning of a stream."""
    words = [np.array([n % _WORD for n in numbers], np.uint64) for numbers in (key, (0, 0, layer, name))]
    nothing = np.zeros(4, np.uint64)  # of an earlier draw is left over
    return {
        "bit_generator": "Philox",
        "state": {"key": words[0], "counter": words[1]},
        "buffer": nothing,
        "buffer_pos": len(nothing),
        "has_uint32": 0,
        "uinteger": 0,
    }
