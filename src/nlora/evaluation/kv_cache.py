"""A key-value cache with room for what follows, which rows can leave without the others being copied.

    cache = PreallocatedCache(rows=64, tokens=180)
    cache.open(0, 16, column=30)        # the next passes run rows 0 to 15; their first token goes to column 30
    cache.open(0, 64)                   # all rows from column 0 on, as far as they are filled
    cache.select_rows([0, 5, 63])              # three rows stay: [0, 5, 63], in this order

transformers' own cache is concatenated anew for every token, all of it, and leaving rows out copies the
others. Here each layer has one tensor, of which a pass writes its own columns, and a leaving row's place is taken
by the last one. Parts of a batch can be run one after another into one cache (`open`), so that what follows runs
on all of them at once.

Only for models whose layers keep all tokens (`keeps_all_tokens`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

_MORE_TOKENS = 16
"""Columns that a full layer grows by."""


@dataclass(slots=True)
class _Window:
    """What the next pass sees of each layer's tensor: some rows, from one column on."""

    rows: int
    tokens: int
    begin: int = 0
    end: int = 0
    column: int = 0


class PreallocatedLayer(DynamicLayer):
    """Keys and values (rows, heads, tokens, width) of one layer; `keys` and `values` are the window's part."""

    def __init__(self, window: _Window) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._window = window
        self._room: tuple[Tensor, Tensor] | None = None
        self._length = 0

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Writes (B, heads, new tokens, width) behind what is there; B is the window's rows, or 1 for all."""
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
        """Tokens in the window."""
        return self._length

    def crop(self, tokens_to_remove: int) -> None:
        """Forgets the last tokens. tokens_to_remove: negative, as transformers has it."""
        self._length -= abs(tokens_to_remove)
        self._show()

    def open(self, length: int) -> None:
        """The window has moved; `length` tokens of it are filled."""
        self._length = length
        if self._room is not None:
            self._show()

    def move(self, sources: Tensor, targets: Tensor) -> None:
        """Copies the window's part of some rows over that of others."""
        for part in self._show():
            part[targets] = part[sources]

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
        """Zeros before the window's first token: a mask hides what is there, but no mask hides a NaN."""
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
    """The layers of one model; they appear as the first pass reaches them.

    rows: the most rows. tokens: how many are expected for each; more make it grow, at the cost of a copy.
    """

    def __init__(self, rows: int, tokens: int) -> None:
        super().__init__()
        self._window = _Window(rows, tokens, end=rows)
        self.layers: list[Any] = []
        self.layer_class_to_replicate: Any = lambda: PreallocatedLayer(self._window)

    def open(self, begin: int, end: int, *, column: int = 0, length: int = 0) -> None:
        """The next passes run rows begin to end. The window starts at a column; `length` tokens are filled."""
        self._window.begin, self._window.end, self._window.column = begin, end, column
        for layer in self.layers:
            layer.open(length)

    def select_rows(self, rows: Sequence[int]) -> list[int]:
        """Only these rows of the window stay. Returns which of them is where: they may change their order."""
        stay = set(rows)
        kept = [row if row in stay else -1 for row in range(len(stay))]
        targets = [place for place, row in enumerate(kept) if row < 0]
        sources = sorted(row for row in stay if row >= len(stay))
        for place, row in zip(targets, sources, strict=True):
            kept[place] = row
        for layer in self.layers:
            if sources:
                device = layer.keys.device
                layer.move(torch.tensor(sources, device=device), torch.tensor(targets, device=device))
        self._window.end = self._window.begin + len(stay)
        for layer in self.layers:
            layer.open(layer.get_seq_length())
        return kept
