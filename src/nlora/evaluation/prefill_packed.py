"""Prompts that a causal model has read packed, and what can follow them: every token once.

    prefill = PackedPrefiller(model, prompts).run(prompts[:64])

Keys and values stay where the prompts' passes left them, one row behind the other. What follows first gathers those
of the rows that are still there, layer by layer: most labels are decided by the prompt's own pass, or by one more. Only
when more follows (answers are generated), the rows that are left move into a cache with room for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor, nn

from nlora.data.packing import common_tokens, pack_rests
from nlora.data.task import TokenizedExample
from nlora.evaluation.kv_cache import PreallocatedCache
from nlora.models.packed_attention import packed_attention, packed_logits
from nlora.models.packed_layout import Continuation, KeysValues, Layout, Memory

_TOKENS_PER_PASS = 1024
"""Tokens of a pass on a CPU: enough for fast matrix products, few enough for its caches (SmolLM2: 600 to 1200 are as
fast, 4096 take 1.5 times as long)."""

_ROOM_TOKENS = 8
"""Columns for what follows in the cache; it grows where they do not do."""

Part = tuple[list[int], KeysValues]
"""Of one pass: its rows' tokens behind the common beginning, and their keys and values."""


class PackedPrefiller:
    """Reads prompts of one task in packed batches, with weights that do not change meanwhile.

    prompts: all that will be read; what they begin with runs once, in the first pass.
    """

    def __init__(self, model: nn.Module, prompts: Sequence[TokenizedExample]) -> None:
        self._model = model
        self._shared = common_tokens(prompts) if len(prompts) > 1 else 0
        self._beginning: KeysValues = []

    def run(self, prompts: Sequence[TokenizedExample]) -> PackedPrefill:
        """Reads some of the prompts; fastest where neighbors are of about one length."""
        device = next(self._model.parameters()).device
        lengths = [len(e.prompt_ids) - self._shared for e in prompts]
        first: list[Tensor] = []
        parts: list[Part] = []
        begin = 0
        with packed_attention(self._model):
            for count in _passes(lengths, _TOKENS_PER_PASS if device.type == "cpu" else sum(lengths)):
                some = slice(begin, begin + count)
                batch = pack_rests(prompts[some], self._shared, with_beginning=not self._beginning)
                batch = {key: value.to(device) for key, value in batch.items()}
                memory = Memory(self._beginning)
                first.append(packed_logits(self._model, batch, Layout.of(batch, memory))[0])
                parts.append((lengths[some], self._behind_the_beginning(memory.kept)))
                begin += count
        return PackedPrefill(self._model, torch.cat(first), self._beginning, parts)

    def _behind_the_beginning(self, kept: KeysValues) -> KeysValues:
        """What a pass has kept of the rests; the first pass has read the beginning, too."""
        if self._beginning or not self._shared:
            return kept
        self._beginning = [(k[: self._shared], v[: self._shared]) for k, v in kept]
        return [(k[self._shared :], v[self._shared :]) for k, v in kept]


def _passes(lengths: Sequence[int], most_tokens: int) -> list[int]:
    """How many rows each pass takes: as few passes as do, of about as many tokens each."""
    wanted = sum(lengths) / -(-sum(lengths) // most_tokens)
    sizes, tokens = [0], 0
    for length in lengths:
        if sizes[-1] and tokens + length / 2 > len(sizes) * wanted:
            sizes.append(0)
        sizes[-1] += 1
        tokens += length
    return sizes


class PackedPrefill:
    """See `nlora.evaluation.prefill.Prefill`."""

    def __init__(self, model: nn.Module, first: Tensor, beginning: KeysValues, parts: Sequence[Part]) -> None:
        self.next_logits = first
        self.rows = list(range(len(first)))
        self._model, self._beginning, self._parts = model, beginning, parts
        self._followed: KeysValues = []  # of what ran behind the prompts, (B', tokens, heads, D)
        self._cache: PreallocatedCache | None = None
        self._there, self._at = self._find_rows()

    def extend(self, tokens: Tensor) -> Tensor:
        """Runs n more tokens of each row, (B', n); their logits, (B', n, V)."""
        if self._cache is None and self._followed:
            self._put_in_columns()
        rows, count = tokens.shape
        layout = Continuation(self._extend, self._there, count)
        positions = self._there.sum(dim=1, keepdim=True) + torch.arange(count, device=tokens.device)
        batch = {"input_ids": tokens.reshape(1, -1), "position_ids": positions.view(1, -1)}
        with packed_attention(self._model):
            logits = packed_logits(self._model, batch, layout)
        self._there = torch.cat([self._there, self._there.new_ones(rows, count)], dim=1)
        return logits.view(rows, count, -1)

    def rollback(self, count: int) -> None:
        """Takes the last tokens back."""
        self._there = self._there[:, :-count]
        if self._cache is not None:
            self._cache.crop(-count)
        else:
            left = self._followed[0][0].shape[1] - count
            self._followed = [(k[:, :left], v[:, :left]) for k, v in self._followed] if left else []

    def select_rows(self, rows: Sequence[int]) -> None:
        """Only these places of `rows` stay; `rows` says in which order."""
        places = sorted(rows) if self._cache is None else self._cache.select_rows(rows)
        self.rows = [self.rows[place] for place in places]
        if self._cache is not None:
            self._there = self._there[places]
            return
        at = torch.tensor(places, device=self.next_logits.device)
        self._followed = [(k.index_select(0, at), v.index_select(0, at)) for k, v in self._followed]
        self._there, self._at = self._find_rows()

    def _find_rows(self) -> tuple[Tensor, list[Tensor]]:
        """What of the rows' columns is no padding, (B', all), and where the rests of the rows lie in each part."""
        device = self.next_logits.device
        lengths = [length for some, _ in self._parts for length in some]
        mine = torch.tensor([lengths[row] for row in self.rows], device=device)[:, None]  # (B', 1)
        columns = torch.arange(int(mine.max()), device=device)  # (W,)
        beginning, followed = (
            torch.ones(len(mine), states[0][0].shape[dim] if states else 0, dtype=torch.bool, device=device)
            for states, dim in ((self._beginning, 0), (self._followed, 1))
        )
        there = torch.cat([beginning, columns < mine, followed], dim=1)
        starts = torch.tensor(
            [start for some, _ in self._parts for start in accumulate(some[:-1], initial=0)], device=device
        )
        at = starts[self.rows][:, None] + columns.minimum(mine - 1)  # (B', W)
        ends = list(accumulate(len(some) for some, _ in self._parts))
        edges = [sum(row < end for row in self.rows) for end in [0, *ends]]
        return there, [at[a:b].flatten() for a, b in pairwise(edges)]

    def _extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """See `Continuation`."""
        if self._cache is None:
            self._followed.append((k, v))
            return self._gathered(layer)
        keys, values = self._cache.update(k.transpose(1, 2), v.transpose(1, 2), layer)
        return keys.transpose(1, 2), values.transpose(1, 2)

    def _gathered(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values of one layer, of the rows that are still there: beginning, rest, what followed."""
        sides = []
        for side in (0, 1):
            rests = [
                kept[layer][side].index_select(0, at)
                for (_, kept), at in zip(self._parts, self._at, strict=True)
                if len(at)
            ]
            rest = torch.cat(rests) if len(rests) > 1 else rests[0]
            pieces = [rest.view(len(self.rows), -1, *rest.shape[1:]), self._followed[layer][side]]
            if self._beginning:
                pieces.insert(0, self._beginning[layer][side].expand(len(self.rows), -1, -1, -1))
            sides.append(torch.cat(pieces, dim=1))
        return sides[0], sides[1]

    def _put_in_columns(self) -> None:
        """More follows than a few tokens, it seems: one tensor per layer from now on, to which they are added."""
        self._cache = PreallocatedCache(len(self.rows), self._there.shape[1] + _ROOM_TOKENS)
        for layer in range(len(self._followed)):
            keys, values = self._gathered(layer)
            self._cache.update(keys.transpose(1, 2), values.transpose(1, 2), layer)
        self._parts, self._followed = (), []
