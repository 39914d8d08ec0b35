"""Prefill: runs prompts through a model and keeps their keys and values, so that each prompt token runs once.

Label scoring and decoding are built on this. `Prefiller.run(prompts)` gives a `Prefill`, which has the logits of each
prompt's next token, runs further tokens, removes them again, and drops rows that are done.

If packing is exact, prompts of causal models are packed (`nlora.evaluation.prefill_packed`), and their common beginning
runs once per task. Otherwise rows of similar length run in one pass, and all passes fill one cache
(`PreallocatedCache`), so that further tokens run on all rows at once.

A model that does not keep all tokens (sliding windows, state spaces) cannot roll back. Its whole prompts run again
with all further tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import EncoderDecoderCache

from nlora.data.collate import Collator
from nlora.data.task import TokenizedExample
from nlora.evaluation.kv_cache import SPARE_COLUMNS, PreallocatedCache
from nlora.evaluation.prefill_packed import PackedPrefiller
from nlora.evaluation.prefill_padded import prefill_padded, with_rows
from nlora.models.inspection import (
    Batch,
    cache_argument,
    decoder_start,
    is_encoder_decoder,
    keeps_all_tokens,
)
from nlora.models.logits import causal_forward

_PASS_OVERHEAD_TOKENS = 48
"""A pass costs a CPU about as much as this number of additional tokens, because it reads all weights (SmolLM2, two
cores)."""
_MOST_PASS_TOKENS = 4096
"""On a CPU, larger passes are slower, because their activations do not fit into its caches."""


class Prefill(Protocol):
    """B prompts that have run, of which B' rows remain.

    next_logits: (B, V) logits of each prompt's next token; they never change.
    """

    next_logits: Tensor

    @property
    def rows(self) -> list[int]:
        """The remaining rows, as indices of prompts."""

    def extend(self, tokens: Tensor) -> Tensor:
        """Runs n more tokens of each remaining row, (B', n); their logits, (B', n, V)."""

    def rollback(self, count: int) -> None:
        """Removes the last tokens of each row."""

    def select_rows(self, rows: Sequence[int]) -> None:
        """Keeps these indices into `rows` only; `rows` then has the new order."""


class Prefiller:
    """Prefills the prompts of one task, with weights that do not change meanwhile.

    prompts: all prompts of the task. packs: whether the model takes packed batches
    (`nlora.models.packed_attention.packing_is_exact`).
    kv_cache: False runs the whole prompt again with all further tokens.
    """

    def __init__(
        self,
        model: nn.Module,
        prompts: Sequence[TokenizedExample],
        *,
        pad_id: int,
        packs: bool,
        kv_cache: bool = True,
    ) -> None:
        self._model = model
        self._collate = Collator(pad_id, is_encoder_decoder(model))
        self._keeps_all = kv_cache and keeps_all_tokens(model)
        self._device = next(model.parameters()).device
        self._packed = PackedPrefiller(model, prompts) if packs and self._keeps_all and prompts else None

    @property
    def can_continue(self) -> bool:
        """Whether further tokens can run without running the prompt again."""
        return self._keeps_all

    def batch(self, prompts: Sequence[TokenizedExample]) -> Batch:
        """The whole prompts as one batch, in their order."""
        return {key: value.to(self._device) for key, value in self._collate(prompts).items()}

    def run(self, prompts: Sequence[TokenizedExample]) -> Prefill:
        """Prefills some of the prompts. prompts: longest first."""
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
    """The number of rows in each pass, with the least total cost of passes and padding.

    lengths: tokens of each row, longest first. A pass of n rows of length l costs _PASS_OVERHEAD_TOKENS + n·l.
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
    """Prefills one batch of `Collator`."""
    if not keeps_all_tokens(model):
        return _UncachedPrefill(model, batch)
    if is_encoder_decoder(model):
        return _EncoderDecoderPrefill(model, [batch])
    return prefill_padded(model, [batch])


class _EncoderDecoderPrefill:
    """Encoded prompts, padded on the right, and a decoder whose start token has run."""

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
        self._output = type(encoded)  # some models have their own class, with more fields for their decoder
        self._caches = PreallocatedCache(count, SPARE_COLUMNS), PreallocatedCache(count, width)
        self._cache = EncoderDecoderCache(*self._caches)
        start = torch.full((count, 1), decoder_start(model), device=mask.device)
        self.next_logits = self.extend(start)[:, -1]

    def extend(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self._model(
            encoder_outputs=self._output(last_hidden_state=self._states),
            attention_mask=self._mask,
            decoder_input_ids=tokens,
            use_cache=True,
            **{cache_argument(self._model): self._cache},
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
    """Prompts that run again with all further tokens."""

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
