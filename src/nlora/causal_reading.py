"""Prompts that a causal model has read, and what can follow them.

    reading = PackedPrompts(model, prompts).read(prompts[:64])     # every token once (`nlora.packed`)
    reading = read_padded(model, passes)                           # for models that cannot take packed batches

What follows needs keys and values in a cache of rows and columns. Packed prompts are put into one only when something
follows, and only those rows that are still there by then: most labels are decided by the prompt's own pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn

from nlora.data.encode import Encoded
from nlora.data.pack import common_tokens, pack_rests
from nlora.logits import causal_forward
from nlora.model_facts import Batch
from nlora.packed import KeysValues, Memory, packed_attention, packed_logits
from nlora.room_cache import RoomCache

_PASS_TOKENS = 1024
"""Tokens of a packed pass on a CPU: enough for fast matrix products, few enough for its caches (SmolLM2: 600 to
1200 are as fast, 4096 take 1.5 times as long)."""
_ROOM_TOKENS = 8
"""Columns for what follows the prompts; the cache grows where they do not do."""


class CausalReading:
    """Rows in a cache, padded on the left.

    rows: their names. first: see `nlora.reading.Reading`. mask: (B, columns), what of the cache is no padding.
    """

    def __init__(
        self, model: nn.Module, rows: Sequence[int], first: Tensor, cache: RoomCache, mask: Tensor
    ) -> None:
        self.rows, self.first = list(rows), first
        self._model, self._cache, self._mask = model, cache, mask

    def run(self, tokens: Tensor) -> Tensor:
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

    def forget(self, count: int) -> None:
        """Takes the last tokens back."""
        self._cache.crop(-count)
        self._mask = self._mask[:, :-count]

    def keep(self, rows: Sequence[int]) -> None:
        """Only these places of `rows` stay."""
        places = self._cache.keep(rows)
        self.rows = [self.rows[place] for place in places]
        self._mask = self._mask[places]


def read_padded(model: nn.Module, passes: Sequence[Batch]) -> CausalReading:
    """Reads padded batches, one after another, into one cache."""
    count = sum(len(batch["input_ids"]) for batch in passes)
    width = max(batch["input_ids"].shape[1] for batch in passes)
    cache = RoomCache(count, width + _ROOM_TOKENS)
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
    return CausalReading(model, range(count), torch.cat(first), cache, mask)


def with_rows(passes: Sequence[Batch]) -> Iterator[tuple[int, int, Batch]]:
    """Each pass with its first row and the one after its last."""
    begin = 0
    for batch in passes:
        end = begin + len(batch["input_ids"])
        yield begin, end, batch
        begin = end


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
        first, parts = [], []
        begin = 0
        with packed_attention(self._model):
            for rows in _passes(lengths, _PASS_TOKENS if device.type == "cpu" else sum(lengths)):
                memory = Memory(self._beginning)
                batch = pack_rests(
                    prompts[begin : begin + rows], self._shared, with_beginning=not self._beginning
                )
                batch = {key: value.to(device) for key, value in batch.items()}
                first.append(packed_logits(self._model, batch, memory)[0])
                kept = memory.kept
                if self._shared and not self._beginning:
                    self._beginning = [(k[: self._shared], v[: self._shared]) for k, v in kept]
                    kept = [(k[self._shared :], v[self._shared :]) for k, v in kept]
                parts.append((lengths[begin : begin + rows], kept))
                begin += rows
        return PackedReading(self._model, torch.cat(first), self._beginning, parts)


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
    """Rows whose keys and values lie one after another, until something is to follow them.

    parts: of each pass, its rows' tokens behind the common beginning, and their keys and values.
    """

    def __init__(
        self,
        model: nn.Module,
        first: Tensor,
        beginning: KeysValues,
        parts: Sequence[tuple[list[int], KeysValues]],
    ) -> None:
        self.first = first
        self._model, self._beginning, self._parts = model, beginning, parts
        self._waiting = list(range(len(first)))
        self._reading: CausalReading | None = None

    @property
    def rows(self) -> list[int]:
        """The rows that are still there, by their number in what was read."""
        return self._waiting if self._reading is None else self._reading.rows

    def run(self, tokens: Tensor) -> Tensor:
        """See `nlora.reading.Reading`."""
        return self._in_columns().run(tokens)

    def forget(self, count: int) -> None:
        """See `nlora.reading.Reading`."""
        self._in_columns().forget(count)

    def keep(self, rows: Sequence[int]) -> None:
        """See `nlora.reading.Reading`."""
        if self._reading is None:
            self._waiting = sorted(self._waiting[place] for place in rows)
        else:
            self._reading.keep(rows)

    def _in_columns(self) -> CausalReading:
        if self._reading is None:
            self._reading = self._put()
            self._parts = ()
        return self._reading

    def _put(self) -> CausalReading:
        """Puts the waiting rows into a cache, padded on the left."""
        device = self.first.device
        shared = len(self._beginning[0][0]) if self._beginning else 0
        lengths = [length for some, _ in self._parts for length in some]
        width = shared + max(lengths[row] for row in self._waiting)
        cache = RoomCache(len(self._waiting), width + _ROOM_TOKENS)
        mask = torch.zeros(len(self._waiting), width, dtype=torch.long)
        begin = done = 0
        for some, kept in self._parts:
            mine = [row - begin for row in self._waiting if begin <= row < begin + len(some)]
            places = torch.zeros(len(mine), width, dtype=torch.long)  # padding: any token, as no one sees it
            starts = list(accumulate(some, initial=shared))
            for line, row in enumerate(mine):
                own = [*range(shared), *range(starts[row], starts[row + 1])]
                places[line, width - len(own) :] = torch.tensor(own)
                mask[done + line, width - len(own) :] = 1
            if mine:
                cache.open(done, done + len(mine))
                for layer, states in enumerate(kept):
                    cache.update(*self._rows_of(layer, states, places.to(device)), layer)
            begin, done = begin + len(some), done + len(mine)
        cache.open(0, done, length=width)
        return CausalReading(self._model, self._waiting, self.first, cache, mask.to(device))

    def _rows_of(self, layer: int, states: tuple[Tensor, Tensor], places: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (rows, heads, width, D) of one layer's tokens at places (rows, width)."""
        before = self._beginning[layer] if self._beginning else ()
        made = []
        for i, some in enumerate(states):
            whole = torch.cat([before[i], some]) if before else some  # (tokens, heads, D)
            taken = whole.index_select(0, places.flatten()).view(*places.shape, *whole.shape[1:])
            made.append(taken.transpose(1, 2))
        return made[0], made[1]
