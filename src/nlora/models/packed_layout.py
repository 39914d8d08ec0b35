"""Which tokens attend to which in one row of tokens: a packed batch, and further tokens for its examples.

A layout's `attend` takes the states (S, heads, D) of the tokens in this pass. Each token attends to those before it in
its own sequence. `nlora.models.packed_attention` passes the layout to every attention layer of a model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import count as count_up

import torch
from torch import Tensor
from torch.nn import functional as F

from nlora.kernels.merged_attention import merged_attention
from nlora.models.inspection import Batch
from nlora.models.masked_attention import (
    by_key_head,
    by_token,
    for_heads,
    kind_of,
    masked_attention,
    wider_on_cpu,
)

KeysValues = list[tuple[Tensor, Tensor]]
"""The keys and values of each layer."""
MERGE_FROM = 1000
"""The prefix tokens from which `merged_attention` reads a prefix: measured, it is faster from somewhere below."""
MERGE_DEVICES = ("cpu",)
"""Where it does. On a GPU, copies are faster up to 2,000 tokens, and need less at the peak (docs/gpu.md)."""
ONE_CALL_DEVICES = ("cuda",)
"""Where a short batch's attention is one call over all of its tokens. It starts 24 operations fewer in a layer than a
call for each kind of token, and computes more, most of which the mask takes out."""
ONE_CALL_TOKENS = {torch.bfloat16: 2048, torch.float16: 2048, torch.float32: 1024}
"""The most tokens of such a batch, by the states' dtype."""


@dataclass(slots=True, eq=False)
class Memory:
    """The keys and values of one pass, (tokens, heads, D) in each layer.

    before: those of the shared prefix, from an earlier pass. kept: collects those of this pass.
    """

    before: KeysValues = field(default_factory=list)
    kept: KeysValues = field(default_factory=list)

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store those of the next layer; return them with the prefix in front."""
        self.kept.append((k, v))
        if not self.before:
            return k, v
        keys, values = self.before[len(self.kept) - 1]
        return torch.cat([keys, k]), torch.cat([values, v])


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """One group of a packed batch: examples that share a prefix. Its tokens are consecutive.

    prefix: P, the length of the shared prefix. begins: how many prefix tokens are in this pass, P or 0.
    rows_at: (B, L), indices of each row's tokens in this pass.
    keys_at: (B, P + L), indices of each row's keys among all tokens, prefix included.
    back_at: for each token after the prefix, its index in rows_at.flatten(); None if all rows have length L.
    tokens: the group's tokens in this pass.
    """

    prefix: int
    begins: int
    rows_at: Tensor
    keys_at: Tensor
    back_at: Tensor | None
    tokens: int
    memory: Memory | None = None
    masks: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    @classmethod
    def of(cls, group: Batch, memory: Memory | None = None) -> Layout:
        """The layout of one of a batch's groups. memory.before: the prefix, if the batch does not contain it."""
        rows_at, keys_at, back_at = group["rows_at"], group["keys_at"], group["back_at"]
        prefix = keys_at.shape[1] - rows_at.shape[1]
        begins = 0 if memory is not None and memory.before else prefix
        padded = len(back_at) < rows_at.numel()
        places = back_at if padded else None
        return cls(prefix, begins, rows_at, keys_at, places, begins + len(back_at), memory)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, dropout: float, scaling: float | None) -> Tensor:
        """q: (S, H, D). k, v: (S, Hk, D). Returns (S, H, D)."""
        attend = self._merged if self._merges(k.device, dropout) else self._copied
        return attend(q, *self._with_earlier(k, v), dropout, scaling)

    def _with_earlier(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return (k, v) if self.memory is None else self.memory.extend(k, v)

    def _merges(self, device: torch.device, dropout: float) -> bool:
        """Whether the prefix's keys are read where they are. Dropout of the scores needs all of them at once."""
        return self.prefix >= MERGE_FROM and not dropout and kind_of(device) in MERGE_DEVICES

    def _copied(self, q: Tensor, k: Tensor, v: Tensor, dropout: float, scaling: float | None) -> Tensor:
        """Attention to a copy of the prefix's keys for each row. k, v: (P + S, Hk, D) or (S, Hk, D)."""
        prefix_mask, row_mask = self._masks_for(q.shape[1] // k.shape[1], q)
        copies = _taken if kind_of(k.device) == "cpu" else partial(_expanded, prefix=self.prefix)
        keys, values = copies(k, self.keys_at), copies(v, self.keys_at)
        rows = self._real(masked_attention(_taken(q, self.rows_at), keys, values, row_mask, dropout, scaling))
        if not self.begins:
            return rows
        q, k, v = (states[None, : self.begins] for states in (q, k, v))
        return torch.cat([masked_attention(q, k, v, prefix_mask, dropout, scaling).squeeze(0), rows])

    def _merged(self, q: Tensor, k: Tensor, v: Tensor, dropout: float, scaling: float | None) -> Tensor:
        """The same without copies, and without a mask as large as the prefix squared."""
        dtype, key_heads, length = q.dtype, k.shape[1], self.rows_at.shape[1]
        q, k, v = wider_on_cpu(q, k, v)
        mask = q.new_full((length, length), float("-inf")).triu_(1).repeat(q.shape[1] // key_heads, 1)
        own_at = self.keys_at[:, self.prefix :]
        own_k, own_v = (_taken(states, own_at).transpose(1, 2) for states in (k, v))  # (B, Hk, L, D)
        shared_k, shared_v = (states[: self.prefix].transpose(0, 1) for states in (k, v))  # (Hk, P, D)
        by_head = by_key_head(_taken(q, self.rows_at), key_heads)
        out = merged_attention(by_head, own_k, own_v, shared_k, shared_v, mask, scaling)
        found = self._real(by_token(out, length))
        if self.begins:
            first = (
                q[: self.begins].view(self.begins, key_heads, -1, q.shape[2]).permute(2, 1, 0, 3)
            )  # (H/Hk, Hk, P, D)
            shared_k, shared_v = (states.expand(len(first), -1, -1, -1) for states in (shared_k, shared_v))
            out = F.scaled_dot_product_attention(first, shared_k, shared_v, is_causal=True, scale=scaling)
            found = torch.cat([out.permute(2, 1, 0, 3).flatten(1, 2), found])
        return found.to(dtype)

    def _real(self, rows: Tensor) -> Tensor:
        """Of the rows (B, L, H, D), the tokens that are not repetitions, (S - begins, H, D)."""
        tokens = rows.flatten(0, 1)
        return tokens if self.back_at is None else tokens.index_select(0, self.back_at)

    def _masks_for(self, heads: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """What to add to the scores of the prefix (heads·P, P) and of a row (heads·L, P + L).

        A short row repeats its last token. The real tokens do not see the repetitions, whose outputs are not used.
        """
        if heads not in self.masks:
            tokens = self.keys_at.shape[1]
            mask = like.new_full((tokens, tokens), float("-inf")).triu_(1)
            self.masks[heads] = (
                for_heads(mask[: self.prefix, : self.prefix], heads),
                for_heads(mask[self.prefix :], heads),
            )
        return self.masks[heads]


@dataclass(frozen=True, slots=True, eq=False)
class BatchLayout:
    """A packed batch: one group after another. predict_at: (N,), the tokens whose logits are needed."""

    groups: tuple[Layout, ...]
    predict_at: Tensor
    masks: dict[int, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, batch: Batch, memory: Memory | None = None) -> BatchLayout:
        """The layout of a batch from `pack`, or of one group from `pack_rests`, which may have a memory."""
        return cls(tuple(Layout.of(group, memory) for group in batch["groups"]), batch["predict_at"])

    @property
    def tokens(self) -> int:
        """S, the tokens in this pass."""
        return sum(group.tokens for group in self.groups)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, dropout: float, scaling: float | None) -> Tensor:
        """q: (S, H, D). k, v: (S, Hk, D). Returns (S, H, D)."""
        if self._in_one_call(q):
            mask = self._mask_for(q.shape[1] // k.shape[1], q)
            return masked_attention(q[None], k[None], v[None], mask, dropout, scaling).squeeze(0)
        if len(self.groups) == 1:
            return self.groups[0].attend(q, k, v, dropout, scaling)
        sizes = [group.tokens for group in self.groups]
        parts = zip(self.groups, *(torch.split(states, sizes) for states in (q, k, v)), strict=True)
        return torch.cat([group.attend(*part, dropout, scaling) for group, *part in parts])

    def _in_one_call(self, q: Tensor) -> bool:
        few = self.tokens <= ONE_CALL_TOKENS.get(q.dtype, 0)
        return few and kind_of(q.device) in ONE_CALL_DEVICES and all(g.memory is None for g in self.groups)

    def _mask_for(self, heads: int, like: Tensor) -> Tensor:
        """What to add to the scores, (heads·S, S): a token sees those before it in its row, and its row's prefix."""
        if heads not in self.masks:
            rows, prefixes, first = [], [], 0  # of each token, as numbers; a prefix is a row, too
            for group in self.groups:
                count, length = group.rows_at.shape
                places = group.back_at
                if places is None:
                    places = torch.arange(count * length, device=like.device)
                rows += [
                    torch.full_like(places[:1], first).expand(group.begins),
                    places // length + first + 1,
                ]
                prefixes.append(torch.full_like(places[:1], first).expand(group.tokens))
                first += count + 1
            row, prefix = torch.cat(rows), torch.cat(prefixes)  # (S,)
            sees = ((row == row[:, None]) | (row == prefix[:, None])).tril()
            mask = like.new_zeros(sees.shape).masked_fill_(~sees, float("-inf"))
            self.masks[heads] = for_heads(mask, heads)
        return self.masks[heads]


@dataclass(frozen=True, slots=True, eq=False)
class Continuation:
    """n more tokens for each of B rows, row by row.

    extend: takes a layer's number and the new tokens' keys and values, (B, n, heads, D); returns all keys and values of
        the rows with the new ones at the end, (B, W + n, heads, D).
    valid: (B, W), which of the W earlier columns hold tokens of the row.
    """

    extend: Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]]
    valid: Tensor
    count: int
    layers: Iterator[int] = field(default_factory=count_up)
    masks: dict[int, Tensor] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """B·n."""
        return len(self.valid) * self.count

    @property
    def predict_at(self) -> Tensor:
        """All tokens."""
        return torch.arange(self.tokens, device=self.valid.device)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, dropout: float, scaling: float | None) -> Tensor:
        """q: (B·n, H, D). k, v: (B·n, Hk, D). Returns (B·n, H, D)."""
        mask = self._mask_for(q.shape[1] // k.shape[1], q)
        q, k, v = (states.reshape(len(self.valid), self.count, *states.shape[1:]) for states in (q, k, v))
        return masked_attention(q, *self.extend(next(self.layers), k, v), mask, dropout, scaling).flatten(
            0, 1
        )

    def _mask_for(self, heads: int, like: Tensor) -> Tensor:
        """What to add to the scores, (B, 1, heads·n, W + n)."""
        if heads not in self.masks:
            own = torch.ones(self.count, self.count, dtype=torch.bool, device=like.device).tril_()
            rows = len(self.valid)
            visible = torch.cat(
                [
                    self.valid[:, None].expand(rows, self.count, self.valid.shape[1]),
                    own.expand(rows, self.count, self.count),
                ],
                dim=2,
            )  # (B, n, W + n)
            mask = like.new_zeros(visible.shape).masked_fill_(~visible, float("-inf"))
            self.masks[heads] = mask.repeat(1, heads, 1)[:, None]
        return self.masks[heads]


def _taken(states: Tensor, at: Tensor) -> Tensor:
    """States (S, heads, D) at indices (B, n): (B, n, heads, D)."""
    return states.index_select(0, at.flatten()).view(*at.shape, *states.shape[1:])


def _expanded(states: Tensor, at: Tensor, prefix: int) -> Tensor:
    """The same where each row of `at` begins with the prefix.

    On a GPU, a gathered prefix's gradient would be summed over the rows by atomic operations: in any order, and in the
    states' own dtype.
    """
    before = states[:prefix].expand(len(at), -1, -1, -1)
    return torch.cat([before, _taken(states, at[:, prefix:])], dim=1)
