"""A key-value cache with space for further tokens, from which rows can be removed without copying all others.

>>> cache = PreallocatedCache(rows=64, tokens=180)
>>> cache.open(0, 16, column=30)  # the next passes run rows 0 to 15, and their first token goes to column 30
>>> cache.open(0, 64, length=150)  # the next passes run all rows, of which 150 columns are filled
>>> cache.select_rows([0, 2, 63])  # only these stay, in this order
[0, 63, 2]

transformers' own cache is concatenated as a whole for every new token, and removing rows copies all others. Here each
layer has one tensor, into which a pass writes its columns, and the last rows fill the gaps of removed ones. Parts of
a batch can run one after another into one cache (`open`), so that further tokens run on all of them at once.

Only for models whose layers keep all tokens (`nlora.models.inspection.keeps_all_tokens`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

SPARE_COLUMNS = 8
"""For the new tokens of a prompt that has been read; more columns are added when they run out."""
_MORE_TOKENS = 16
"""Number of columns by which a full layer grows."""


@dataclass(slots=True)
class _Window:
    """The part of each layer's tensor that the next pass sees: some rows, from one column on."""

    rows: int
    tokens: int
    begin: int = 0
    end: int = 0
    column: int = 0


class PreallocatedLayer(DynamicLayer):
    """Keys and values of one layer, (rows, heads, tokens, width); `keys` and `values` are the window's part of them."""

    def __init__(self, window: _Window) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._window = window
        self._room: tuple[Tensor, Tensor] | None = None
        self._length = 0

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Appends (B, heads, new tokens, width); B is the number of the window's rows, or 1 for all of them."""
        added = key_states.shape[2]
        self._reserve(key_states, value_states, self._window.column + self._length + added)
        if not self._length:
            self._blank()
        self._length += added
        keys, values = self._show()
        keys[:, :, -added:] = key_states
        values[:, :, -added:] = value_states
        return keys, values

    def get_seq_length(self) -> int:
        """Number of tokens in the window."""
        return self._length

    def crop(self, tokens_to_remove: int) -> None:
        """Removes the last tokens. tokens_to_remove: negative, as in transformers."""
        self._length -= abs(tokens_to_remove)
        self._show()

    def open(self, length: int) -> None:
        """Follows the window, of which `length` tokens are filled."""
        self._length = length
        if self._room is not None:
            self._show()

    def copy_rows(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copies some rows of the window over others."""
        for part in self._show():
            part[list(targets)] = part[list(sources)]

    def _reserve(self, keys: Tensor, values: Tensor, tokens: int) -> None:
        if self._room is None:
            self.lazy_initialization(keys, values)
            self._room = self._empty(keys, self._window.tokens), self._empty(values, self._window.tokens)
        if tokens > self._room[0].shape[2]:
            old = self._room
            self._room = self._empty(keys, tokens + _MORE_TOKENS), self._empty(values, tokens + _MORE_TOKENS)
            for whole, part in zip(self._room, old, strict=True):
                whole[:, :, : part.shape[2]] = part

    def _blank(self) -> None:
        """Clears the columns before the window: they are masked, but a mask does not hide a NaN."""
        assert self._room is not None
        w = self._window
        for part in self._room:
            part[w.begin : w.end, :, : w.column] = 0

    def _empty(self, like: Tensor, tokens: int) -> Tensor:
        return like.new_empty(self._window.rows, like.shape[1], tokens, like.shape[3])

    def _show(self) -> tuple[Tensor, Tensor]:
        assert self._room is not None
        w = self._window
        keys, values = (part[w.begin : w.end, :, w.column : w.column + self._length] for part in self._room)
        self.keys, self.values = keys, values
        return keys, values


class PreallocatedCache(DynamicCache):
    """The layers of one model; they are created as the first pass reaches them.

    rows: the largest number of rows. tokens: the expected number for each; more make it grow, at the cost of a copy.
    """

    def __init__(self, rows: int, tokens: int) -> None:
        super().__init__()
        self._window = _Window(rows, tokens, end=rows)
        self.layers: list[Any] = []
        self.layer_class_to_replicate: Any = lambda: PreallocatedLayer(self._window)

    def open(self, begin: int, end: int, *, column: int = 0, length: int = 0) -> None:
        """The next passes run rows begin to end - 1, from a column on, of which `length` tokens are filled."""
        self._window.begin, self._window.end, self._window.column = begin, end, column
        for layer in self.layers:
            layer.open(length)

    def select_rows(self, rows: Sequence[int]) -> list[int]:
        """Removes all other rows of the window. Returns the old index of each row, as the order may change.

        The last rows move into the gaps, and the others stay where they are, so that little is copied.
        """
        stay = set(rows)
        gaps = [row for row in range(len(stay)) if row not in stay]
        moved = sorted(row for row in stay if row >= len(stay))
        order = list(range(len(stay)))
        for gap, row in zip(gaps, moved, strict=True):
            order[gap] = row
        if moved:
            for layer in self.layers:
                layer.copy_rows(moved, gaps)
        self._window.end = self._window.begin + len(stay)
        for layer in self.layers:
            layer.open(layer.get_seq_length())
        return order
