"""Prompts that a model has read, and what can follow them: every prompt token is computed once.

    prefiller = Prefiller(model, prompts, pad_id=0, packs=packing_is_exact(model))
    prefill = prefiller.run([prompts[3], prompts[1]])
    prefill.next_logits                                   # (2, V) logits of each prompt's next token
    prefill.extend(tokens)                             # (2, n, V): n tokens more of each row, their logits
    prefill.rollback(n)                               # as if they had not been run
    prefill.select_rows([1])                               # the other row is done with

Labels are scored and answers are decoded on this. Prompts of causal models are packed where that is exact
(`nlora.evaluation.prefill_packed`): what all of them begin with runs once for the task. Others run in passes of rows
of nearly the same length, but into one cache (`PreallocatedCache`), so that what follows runs on all rows at once.

A model that does not keep all tokens (sliding windows, state spaces) cannot take anything back: its whole
prompts run again with whatever follows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import EncoderDecoderCache

from nlora.data.collate import Collator
from nlora.data.task import TokenizedExample
from nlora.evaluation.kv_cache import PreallocatedCache
from nlora.evaluation.prefill_packed import PackedPrefiller
from nlora.evaluation.prefill_padded import prefill_padded, with_rows
from nlora.models.inspection import Batch, decoder_start, is_encoder_decoder, keeps_all_tokens
from nlora.models.logits import causal_forward

_PASS_OVERHEAD_TOKENS = 48
"""A pass costs a CPU about as much as so many tokens more, since it reads the weights (SmolLM2, two cores)."""
_MOST_PASS_TOKENS = 4096
"""On a CPU, passes over more tokens than these are slower: what they compute falls out of its caches."""
_ROOM_TOKENS = 8
"""Columns for what follows the prompts; the cache grows where they do not do."""


class Prefill(Protocol):
    """Rows that have been read.

    first: (B, V) logits of the next token of each row, never changed.
    """

    next_logits: Tensor

    @property
    def rows(self) -> list[int]:
        """Which of them are still there."""

    def extend(self, tokens: Tensor) -> Tensor:
        """Runs n more tokens of each row that is still there, (B', n); their logits, (B', n, V)."""

    def rollback(self, count: int) -> None:
        """Takes the last tokens back."""

    def select_rows(self, rows: Sequence[int]) -> None:
        """Only these places of `rows` stay; `rows` says in which order."""


class Prefiller:
    """Reads the prompts of one task with weights that do not change meanwhile.

    prompts: all of them. packs: whether the model takes packed batches
    (`nlora.models.packed_attention.packing_is_exact`).
    continues: False reads a prompt again, whole, with whatever follows it.
    """

    def __init__(
        self,
        model: nn.Module,
        prompts: Sequence[TokenizedExample],
        *,
        pad_id: int,
        packs: bool,
        continues: bool = True,
    ) -> None:
        self._model = model
        self._collate = Collator(pad_id, is_encoder_decoder(model))
        self._keeps_all = continues and keeps_all_tokens(model)
        self._device = next(model.parameters()).device
        self._packed = PackedPrefiller(model, prompts) if packs and self._keeps_all and prompts else None

    @property
    def can_continue(self) -> bool:
        """Whether tokens can follow a prompt without reading it again."""
        return self._keeps_all

    def batch(self, prompts: Sequence[TokenizedExample]) -> Batch:
        """The whole prompts as one batch, in their order."""
        return {key: value.to(self._device) for key, value in self._collate(prompts).items()}

    def run(self, prompts: Sequence[TokenizedExample]) -> Prefill:
        """Reads prompts, the longest of them first."""
        if not self._keeps_all:
            return _UncachedPrefill(self._model, self.batch(prompts))
        if self._packed is not None:
            return self._packed.run(prompts)
        sizes = [len(prompts)]
        if self._device.type == "cpu":
            sizes = pass_sizes([len(e.prompt_ids) for e in prompts])
        ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
        passes = [self.batch(prompts[end - size : end]) for end, size in zip(ends, sizes, strict=True)]
        if is_encoder_decoder(self._model):
            return _EncoderDecoderPrefill(self._model, passes)
        return prefill_padded(self._model, passes)


def pass_sizes(lengths: Sequence[int]) -> list[int]:
    """How many rows each pass takes, so that passes and padding together cost the least.

    lengths: tokens of each row, the longest first. A pass of n rows as long as l costs _PASS_OVERHEAD_TOKENS + n·l.
    """
    costs = [0.0]  # of the first j rows
    sizes = [0]  # rows of the last pass of these
    for j in range(1, len(lengths) + 1):
        most_rows = max(_MOST_PASS_TOKENS // lengths[j - 1], 1)
        cost, size = min(
            (costs[i] + _PASS_OVERHEAD_TOKENS + (j - i) * lengths[i], j - i)
            for i in range(max(j - most_rows, 0), j)
            if i == j - 1 or (j - i) * lengths[i] <= _MOST_PASS_TOKENS
        )
        costs.append(cost)
        sizes.append(size)
    found = []
    j = len(lengths)
    while j:
        found.append(sizes[j])
        j -= sizes[j]
    return found[::-1]


def prefill_batch(model: nn.Module, batch: Batch) -> Prefill:
    """Reads one batch as `Collator` makes it."""
    if not keeps_all_tokens(model):
        return _UncachedPrefill(model, batch)
    if is_encoder_decoder(model):
        return _EncoderDecoderPrefill(model, [batch])
    return prefill_padded(model, [batch])


class _EncoderDecoderPrefill:
    """Encoded prompts, padded on the right, and a decoder that has read its start token."""

    def __init__(self, model: Any, passes: Sequence[Batch]) -> None:
        self._model = model
        count = sum(len(batch["input_ids"]) for batch in passes)
        width = max(batch["input_ids"].shape[1] for batch in passes)
        mask = passes[0]["attention_mask"].new_zeros(count, width)
        states: Tensor | None = None
        for begin, end, batch in with_rows(passes):
            encoded = model.get_encoder()(**{k: batch[k] for k in ("input_ids", "attention_mask")})
            found = encoded[0]
            if states is None:
                states = found.new_zeros(count, width, found.shape[2])
            states[begin:end, : found.shape[1]] = found
            mask[begin:end, : found.shape[1]] = batch["attention_mask"]
        assert states is not None
        self.rows = list(range(count))
        self._states, self._mask = states, mask
        self._output = type(encoded)  # the encoders of some models say more, and their decoders look for it
        self._caches = PreallocatedCache(count, _ROOM_TOKENS), PreallocatedCache(count, width)
        self._cache = EncoderDecoderCache(*self._caches)
        start = torch.full((count, 1), decoder_start(model), device=mask.device)
        self.next_logits = self.extend(start)[:, -1]

    def extend(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self._model(
            encoder_outputs=self._output(last_hidden_state=self._states),
            attention_mask=self._mask,
            decoder_input_ids=tokens,
            past_key_values=self._cache,
            use_cache=True,
        ).logits
        return logits

    def rollback(self, count: int) -> None:
        self._cache.crop(-count)

    def select_rows(self, rows: Sequence[int]) -> None:
        places = self._caches[0].select_rows(rows)
        self._caches[1].select_rows(rows)
        self.rows = [self.rows[place] for place in places]
        self._states, self._mask = self._states[places], self._mask[places]


class _UncachedPrefill:
    """Prompts that are read again, whole, with whatever follows them."""

    def __init__(self, model: nn.Module, batch: Batch) -> None:
        self._model = model
        self._batch = batch
        self.rows = list(range(len(batch["input_ids"])))
        self._tail = batch["input_ids"].new_empty(len(self.rows), 0)
        self.next_logits = self._last_logits(1)[:, -1]

    def extend(self, tokens: Tensor) -> Tensor:
        self._tail = torch.cat([self._tail, tokens], dim=1)
        return self._last_logits(tokens.shape[1])

    def rollback(self, count: int) -> None:
        self._tail = self._tail[:, :-count]

    def select_rows(self, rows: Sequence[int]) -> None:
        places = list(rows)
        self.rows = [self.rows[place] for place in places]
        self._tail = self._tail[places]
        self._batch = {key: value[places] for key, value in self._batch.items()}

    def _last_logits(self, keep: int) -> Tensor:
        model: Any = self._model
        ids, mask, tail = self._batch["input_ids"], self._batch["attention_mask"], self._tail
        if is_encoder_decoder(model):
            start = torch.full_like(ids[:, :1], decoder_start(model))
            answer = torch.cat([start, tail], dim=1)
            output = model(input_ids=ids, attention_mask=mask, decoder_input_ids=answer, use_cache=False)
            return output.logits[:, -keep:]  # type: ignore[no-any-return]
        longer = {
            **self._batch,
            "input_ids": torch.cat([ids, tail], dim=1),
            "attention_mask": torch.cat([mask, torch.ones_like(tail)], dim=1),
        }
        return causal_forward(model, longer, keep=keep, use_cache=False).logits  # type: ignore[no-any-return]
