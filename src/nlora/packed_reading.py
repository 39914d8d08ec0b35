"""Prompts that a causal model has read packed, and what can follow them: every token once (`nlora.packed`).

    reading = PackedPrompts(model, prompts).read(prompts[:64])

Keys and values stay where the prompts' passes left them, one row behind the other. What follows gathers those of the
rows that are still there, layer by layer, so no cache is ever filled for rows that nothing follows: most labels
are decided by the prompt's own pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor, nn

from nlora.data.encode import Encoded
from nlora.data.pack import common_tokens, pack_rests
from nlora.packed import packed_attention, packed_logits
from nlora.packed_layout import Continuation, KeysValues, Layout, Memory

_PASS_TOKENS = 1024
"""Tokens of a pass on a CPU: enough for fast matrix products, few enough for its caches (SmolLM2: 600 to 1200 are as
fast, 4096 take 1.5 times as long)."""

Part = tuple[list[int], KeysValues]
"""Of one pass: its rows' tokens behind the common beginning, and their keys and values."""


class PackedPrompts:
    """Reads prompts of one task in packed batches, with weights that do not change meanwhile.

    prompts: all that will be read; what they begin with runs once, in the first pass.
    """

    def __init__(self, model: nn.Module, prompts: Sequence[Encoded]) -> None:
        self._model = model
        self._shared = common_tokens(prompts) if len(prompts) > 1 else 0
        self._beginning: KeysValues = []

    def read(self, prompts: Sequence[Encoded]) -> PackedReading:
        """Reads some of the prompts; fastest where neighbours are of about one length."""
        device = next(self._model.parameters()).device
        lengths = [len(e.prompt_ids) - self._shared for e in prompts]
        first: list[Tensor] = []
        parts: list[Part] = []
        begin = 0
        with packed_attention(self._model):
            for count in _passes(lengths, _PASS_TOKENS if device.type == "cpu" else sum(lengths)):
                some = slice(begin, begin + count)
                batch = pack_rests(prompts[some], self._shared, with_beginning=not self._beginning)
                batch = {key: value.to(device) for key, value in batch.items()}
                memory = Memory(self._beginning)
                first.append(packed_logits(self._model, batch, Layout.of(batch, memory))[0])
                parts.append((lengths[some], self._behind_the_beginning(memory.kept)))
                begin += count
        return PackedReading(self._model, torch.cat(first), self._beginning, parts)

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


class PackedReading:
    """See `nlora.reading.Reading`."""

    def __init__(self, model: nn.Module, first: Tensor, beginning: KeysValues, parts: Sequence[Part]) -> None:
        self.first = first
        self.rows = list(range(len(first)))
        self._model, self._beginning, self._parts = model, beginning, parts
        self._added: KeysValues = []  # (B', tokens that followed, heads, D)
        self._find_rows()

    def run(self, tokens: Tensor) -> Tensor:
        """Runs n more tokens of each row, (B', n); their logits, (B', n, V)."""
        rows, count = tokens.shape
        before = self._added[0][0].shape[1] if self._added else 0
        there = torch.cat([self._there, self._there.new_ones(rows, before)], dim=1)
        layout = Continuation(self._pieces_of, there, count)
        positions = there.sum(dim=1, keepdim=True) + torch.arange(count, device=there.device)
        batch = {"input_ids": tokens.reshape(1, -1), "position_ids": positions.view(1, -1)}
        with packed_attention(self._model):
            logits = packed_logits(self._model, batch, layout)
        self._added = [
            (torch.cat([*keys, k], dim=1), torch.cat([*values, v], dim=1))
            for (keys, values), (k, v) in zip(self._all_added(len(layout.kept)), layout.kept, strict=True)
        ]
        return logits.view(rows, count, -1)

    def forget(self, count: int) -> None:
        """Takes the last tokens back."""
        left = self._added[0][0].shape[1] - count
        self._added = [(k[:, :left], v[:, :left]) for k, v in self._added] if left else []

    def keep(self, rows: Sequence[int]) -> None:
        """Only these places of `rows` stay, in their old order."""
        places = sorted(rows)
        self.rows = [self.rows[place] for place in places]
        at = torch.tensor(places, device=self.first.device)
        self._added = [(k.index_select(0, at), v.index_select(0, at)) for k, v in self._added]
        self._find_rows()

    def _find_rows(self) -> None:
        """Where the rows that are still there lie in their parts, padded on the right, and what of it is no padding."""
        device = self.first.device
        beginning = len(self._beginning[0][0]) if self._beginning else 0
        lengths = [length for some, _ in self._parts for length in some]
        mine = torch.tensor([lengths[row] for row in self.rows], device=device)[:, None]  # (B', 1)
        columns = torch.arange(int(mine.max()), device=device)  # (W,)
        whole = torch.ones(len(mine), beginning, dtype=torch.bool, device=device)
        self._there = torch.cat([whole, columns < mine], dim=1)  # (B', P + W)
        starts = torch.tensor(
            [start for some, _ in self._parts for start in accumulate(some[:-1], initial=0)], device=device
        )
        at = starts[self.rows][:, None] + columns.minimum(mine - 1)  # (B', W)
        ends = list(accumulate(len(some) for some, _ in self._parts))
        edges = [sum(row < end for row in self.rows) for end in [0, *ends]]
        self._at = [at[a:b].flatten() for a, b in pairwise(edges)]

    def _pieces_of(self, layer: int) -> tuple[list[Tensor], list[Tensor]]:
        """Keys and values of one layer, of the rows that are still there: beginning, rest, what followed."""
        sides: list[list[Tensor]] = []
        for side in (0, 1):
            rests = [
                kept[layer][side].index_select(0, at)
                for (_, kept), at in zip(self._parts, self._at, strict=True)
                if len(at)
            ]
            rest = torch.cat(rests) if len(rests) > 1 else rests[0]
            pieces = [rest.view(len(self.rows), -1, *rest.shape[1:])]
            if self._beginning:
                pieces.insert(0, self._beginning[layer][side].expand(len(self.rows), -1, -1, -1))
            if self._added:
                pieces.append(self._added[layer][side])
            sides.append(pieces)
        return sides[0], sides[1]

    def _all_added(self, layers: int) -> list[tuple[list[Tensor], list[Tensor]]]:
        """Of each layer, keys and values of what has followed, each a list of one or none."""
        return [([k], [v]) for k, v in self._added] if self._added else [([], [])] * layers
