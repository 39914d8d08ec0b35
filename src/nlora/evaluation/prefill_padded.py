"""Prefill of a causal model in padded rows.

For models that take no packed batches; see `nlora.evaluation.prefill_packed`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from nlora.evaluation.kv_cache import SPARE_COLUMNS, PreallocatedCache
from nlora.models.inspection import Batch
from nlora.models.logits import causal_forward


class PaddedPrefill:
    """Rows in a cache, padded on the left; see `nlora.evaluation.prefill.Prefill`.

    first: (B, V) logits of the next tokens. mask: (B, columns) 0 on padding in the cache.
    """

    def __init__(self, model: nn.Module, first: Tensor, cache: PreallocatedCache, mask: Tensor) -> None:
        self.rows, self.next_logits = list(range(len(first))), first
        self._model, self._cache, self._mask = model, cache, mask

    def extend(self, tokens: Tensor) -> Tensor:
        """Runs n more tokens of each row, (B', n); their logits, (B', n, V)."""
        added = torch.ones_like(tokens)
        logits: Tensor = causal_forward(
            self._model,
            {"input_ids": tokens, "attention_mask": added},
            keep=tokens.shape[1],
            use_cache=True,
            cache=self._cache,
            before=self._mask,
        ).logits
        self._mask = torch.cat([self._mask, added], dim=1)
        return logits

    def rollback(self, count: int) -> None:
        """Removes the last tokens of each row."""
        self._cache.crop(-count)
        self._mask = self._mask[:, :-count]

    def select_rows(self, rows: Sequence[int]) -> None:
        """Keeps these indices into `rows` only; `rows` then has the new order."""
        places = self._cache.select_rows(rows)
        self.rows = [self.rows[place] for place in places]
        self._mask = self._mask[places]


def prefill_padded(model: nn.Module, passes: Sequence[Batch]) -> PaddedPrefill:
    """Prefills padded batches, one after another, into one cache."""
    count = sum(len(batch["input_ids"]) for batch in passes)
    width = max(batch["input_ids"].shape[1] for batch in passes)
    cache = PreallocatedCache(count, width + SPARE_COLUMNS)
    mask = passes[0]["attention_mask"].new_zeros(count, width)
    first = []
    for begin, end, batch in with_rows(passes):
        gap = width - batch["input_ids"].shape[1]
        cache.open(begin, end, column=gap)
        nothing = mask[begin:end, :0]
        output = causal_forward(model, batch, keep=1, use_cache=True, cache=cache, before=nothing)
        first.append(output.logits[:, -1])
        mask[begin:end, gap:] = batch["attention_mask"]
    cache.open(0, count, length=width)
    return PaddedPrefill(model, torch.cat(first), cache, mask)


def with_rows(passes: Sequence[Batch]) -> Iterator[tuple[int, int, Batch]]:
    """(first row, last row + 1, batch) of each pass."""
    begin = 0
    for batch in passes:
        end = begin + len(batch["input_ids"])
        yield begin, end, batch
        begin = end
