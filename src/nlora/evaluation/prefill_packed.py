"""Prefill of a causal model in packed batches: each prompt token runs once, the task's common beginning once in all.

The keys and values stay in the buffers of the passes that computed them. `extend` gathers those of the remaining rows
layer by layer: for labels, the prompt's pass and one more usually suffice. If more follows, as for generated answers,
the remaining rows move to a cache with space for new tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.nn import functional as F

from nlora.data.packing import common_tokens, pack_rests
from nlora.data.task import TokenizedExample
from nlora.evaluation.kv_cache import SPARE_COLUMNS, PreallocatedCache
from nlora.models.packed_attention import packed_attention, packed_logits
from nlora.models.packed_layout import BatchLayout, Continuation, KeysValues, Memory

_TOKENS_PER_PASS = 1024
"""On a CPU: enough for fast matrix products, and few enough for its caches (with SmolLM2, 600 to 1200 are equally fast,
and 4096 take 1.5 times as long)."""


Part = tuple[list[int], KeysValues]
"""Of one pass: the number of tokens of each row after the common beginning, and their keys and values."""


class PackedPrefiller:
    """Prefills prompts of one task in packed batches, with weights that do not change meanwhile.

    prompts: all prompts of the task; their common beginning runs once, in the first pass.
    """

    def __init__(self, model: nn.Module, prompts: Sequence[TokenizedExample]) -> None:
        self._model = model
        self._shared = common_tokens(prompts) if len(prompts) > 1 else 0
        self._beginning: KeysValues = []

    def run(self, prompts: Sequence[TokenizedExample]) -> PackedPrefill:
        """Prefills some of the prompts; fastest if neighbors have similar lengths."""
        device = next(self._model.parameters()).device
        lengths = [len(e.prompt_ids) - self._shared for e in prompts]
        first: list[Tensor] = []
        parts: list[Part] = []
        begin = 0
        with packed_attention(self._model):
            for count in _passes(lengths, _TOKENS_PER_PASS if device.type == "cpu" else sum(lengths)):
                some = slice(begin, begin + count)
                batch = pack_rests(prompts[some], self._shared, with_beginning=not self._beginning)
                batch = send_to_device(batch, device)
                memory = Memory(self._beginning)
                first.append(packed_logits(self._model, batch, BatchLayout.of(batch, memory))[0])
                parts.append((lengths[some], self._without_beginning(memory.kept)))
                begin += count
        return PackedPrefill(self._model, torch.cat(first), self._beginning, parts)

    def _without_beginning(self, kept: KeysValues) -> KeysValues:
        """A pass's keys and values of the rests; those of the first pass start with the common beginning's."""
        if self._beginning or not self._shared:
            return kept
        self._beginning = [(k[: self._shared], v[: self._shared]) for k, v in kept]
        return [(k[self._shared :], v[self._shared :]) for k, v in kept]


def _passes(lengths: Sequence[int], most_tokens: int) -> list[int]:
    """Number of rows in each pass: as few passes as possible, with about the same number of tokens."""
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
        """first: (B, V) logits of the next tokens. beginning: what all rows share. parts: of each pass"""
        self.next_logits = first
        self.rows = list(range(len(first)))
        self._model, self._beginning, self._parts = model, beginning, parts
        self._part_of = [number for number, (lengths, _) in enumerate(parts) for _ in lengths]
        starts = [start for lengths, _ in parts for start in accumulate(lengths[:-1], initial=0)]
        self._starts = torch.tensor(starts, device=first.device)  # (B,) in their parts
        self._tokens = [n for lengths, _ in parts for n in lengths]  # of each row, in its part
        self._lengths = torch.tensor(self._tokens, device=first.device)
        self._added: KeysValues = []  # of the tokens after the prompts, (B', tokens, heads, D)
        self._cache: PreallocatedCache | None = None  # once it is there, it has taken over everything else
        self._is_token, self._indices = self._locate()

    def extend(self, tokens: Tensor) -> Tensor:
        """Runs n more tokens of each row, (B', n); their logits, (B', n, V)."""
        if self._cache is None and self._added:
            self._fill_cache()
        rows, count = tokens.shape
        layout = Continuation(self._append, self._is_token, count)
        positions = self._is_token.sum(dim=1, keepdim=True) + torch.arange(count, device=tokens.device)
        batch = {"input_ids": tokens.reshape(1, -1), "position_ids": positions.view(1, -1)}
        with packed_attention(self._model):
            logits = packed_logits(self._model, batch, layout)
        self._is_token = F.pad(self._is_token, (0, count), value=True)
        return logits.view(rows, count, -1)

    def rollback(self, count: int) -> None:
        """Removes the last tokens of each row."""
        self._is_token = self._is_token[:, :-count]
        if self._cache is not None:
            self._cache.crop(-count)
        else:
            left = self._added[0][0].shape[1] - count
            self._added = [(k[:, :left], v[:, :left]) for k, v in self._added] if left else []

    def select_rows(self, rows: Sequence[int]) -> None:
        """Keeps these indices into `rows` only; `rows` then has the new order."""
        if self._cache is not None:
            order = self._cache.select_rows(rows)
            self.rows = [self.rows[i] for i in order]
            self._is_token = self._is_token[order]
            return
        order = sorted(rows)
        self.rows = [self.rows[i] for i in order]
        index = torch.tensor(order, device=self.next_logits.device)
        self._added = [(k[index], v[index]) for k, v in self._added]
        self._is_token, self._indices = self._locate()

    def _locate(self) -> tuple[Tensor, list[Tensor]]:
        """Which columns of the rows hold a token, (B', columns), and the indices of the rows' tokens in each part."""
        lengths, starts = self._lengths[self.rows, None], self._starts[self.rows, None]  # (B', 1)
        longest = max(self._tokens[row] for row in self.rows)  # read on the CPU, so nothing waits for a GPU
        columns = torch.arange(longest, device=lengths.device)  # (W,)
        beginning = len(self._beginning[0][0]) if self._beginning else 0
        added = self._added[0][0].shape[1] if self._added else 0
        is_token = F.pad(columns < lengths, (beginning, added), value=True)
        indices = starts + columns.minimum(lengths - 1)  # (B', W), which repeats a short row's last token
        part_of_rows = [self._part_of[row] for row in self.rows]  # sorted, as the rows are
        counts = [part_of_rows.count(number) for number in range(len(self._parts))]
        return is_token, [of_part.flatten() for of_part in torch.split(indices, counts)]

    def _append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """See `Continuation`."""
        if self._cache is None:
            self._added.append((k, v))
            return self._gathered(layer)
        keys, values = self._cache.update(k.transpose(1, 2), v.transpose(1, 2), layer)
        return keys.transpose(1, 2), values.transpose(1, 2)

    def _gathered(self, layer: int) -> tuple[Tensor, Tensor]:
        """One layer's keys and values of the remaining rows: common beginning, rest, added tokens."""
        sides = []
        for side in (0, 1):
            rests = [
                kept[layer][side].index_select(0, indices)
                for (_, kept), indices in zip(self._parts, self._indices, strict=True)
                if len(indices)
            ]
            rest = torch.cat(rests) if len(rests) > 1 else rests[0]
            pieces = [rest.view(len(self.rows), -1, *rest.shape[1:]), self._added[layer][side]]
            if self._beginning:
                pieces.insert(0, self._beginning[layer][side].expand(len(self.rows), -1, -1, -1))
            sides.append(torch.cat(pieces, dim=1))
        return sides[0], sides[1]

    def _fill_cache(self) -> None:
        """Moves everything to one tensor per layer, to which further tokens are added in place."""
        self._cache = PreallocatedCache(len(self.rows), self._is_token.shape[1] + SPARE_COLUMNS)
        for layer in range(len(self._added)):
            keys, values = self._gathered(layer)
            self._cache.update(keys.transpose(1, 2), values.transpose(1, 2), layer)
        self._parts, self._added = (), []
