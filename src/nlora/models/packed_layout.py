"""Who attends to whom among tokens that lie in one row: a packed batch, and what continues its rows.

    Layout.of(pack(examples))                   # the examples' common beginning once, then the rest of each
    Continuation(extend, there, count=2)        # two more tokens for each of some rows whose keys were kept

A layout's `attend` takes states (S, heads, D) of the tokens that run, and attends for each of them to the tokens that
its own sequence has before it. `nlora.models.packed_attention` hands it to every attention layer of a model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count as count_up

import torch
from torch import Tensor
from torch.nn import functional as F

from nlora.models.inspection import Batch

KeysValues = list[tuple[Tensor, Tensor]]
"""Of each layer, keys and values."""


@dataclass(slots=True, eq=False)
class Memory:
    """The keys and values of one pass, (tokens, heads, D) in each layer.

    before: those of the beginning that all rows continue, from an earlier pass. kept: gets those of this pass.
    """

    before: KeysValues = field(default_factory=list)
    kept: KeysValues = field(default_factory=list)

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keeps the next layer's; returns them with what is before them in front."""
        self.kept.append((k, v))
        if not self.before:
            return k, v
        keys, values = self.before[len(self.kept) - 1]
        return torch.cat([keys, k]), torch.cat([values, v])


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """A packed batch.

    prefix: P, the tokens that all begin with; begins: how many of them run now, P or none. rows_at: (B, L) among
    the tokens that run, keys_at: (B, P + L) among all, the prefix before each row. back_at: the place in
    rows_at.flatten() of each token behind the prefix; None where no row is shorter than L. tokens: S, which run.
    predict_at: (N,).
    """

    prefix: int
    begins: int
    rows_at: Tensor
    keys_at: Tensor
    back_at: Tensor | None
    tokens: int
    predict_at: Tensor
    memory: Memory | None = None
    masks: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    @classmethod
    def of(cls, batch: Batch, memory: Memory | None = None) -> Layout:
        """Of a batch as `pack` makes it; memory.before: what a batch without its beginning continues."""
        rows_at, back_at = batch["rows_at"], batch["back_at"]
        tokens = batch["input_ids"].shape[1]
        begins = tokens - len(back_at)
        earlier = len(memory.before[0][0]) if memory is not None and memory.before else 0
        prefix = earlier + begins
        before = torch.arange(prefix, device=rows_at.device).expand(len(rows_at), prefix)
        keys_at = torch.cat([before, rows_at + earlier], dim=1)
        padded = len(back_at) < rows_at.numel()
        places = back_at if padded else None
        return cls(prefix, begins, rows_at, keys_at, places, tokens, batch["predict_at"], memory)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, dropout: float, scaling: float | None) -> Tensor:
        """q: (S, H, D). k, v: (S, Hk, D). Returns (S, H, D)."""
        prefix_mask, row_mask = self._masks_for(q.shape[1] // k.shape[1], q)
        if self.memory is not None:
            k, v = self.memory.extend(k, v)
        rows = _grouped(
            _taken(q, self.rows_at),
            _taken(k, self.keys_at),
            _taken(v, self.keys_at),
            row_mask,
            dropout,
            scaling,
        ).flatten(0, 1)  # (B·L, H, D)
        if self.back_at is not None:
            rows = rows.index_select(0, self.back_at)
        if not self.begins:
            return rows
        q, k, v = (states[None, : self.begins] for states in (q, k, v))
        return torch.cat([_grouped(q, k, v, prefix_mask, dropout, scaling)[0], rows])

    def _masks_for(self, heads: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """What to add to the scores of the prefix (heads·P, P) and of a row (heads·L, P + L).

        Behind a row's end its last token is repeated. No token before the end sees that, and nobody looks at what comes
        out there.
        """
        if heads not in self.masks:
            tokens = self.keys_at.shape[1]
            mask = like.new_full((tokens, tokens), float("-inf")).triu_(1)
            self.masks[heads] = (
                mask[: self.prefix, : self.prefix].repeat(heads, 1),
                mask[self.prefix :].repeat(heads, 1),
            )
        return self.masks[heads]


@dataclass(frozen=True, slots=True, eq=False)
class Continuation:
    """n more tokens for each of B rows, row by row.

    extend: of each layer in turn, takes the new tokens' keys and values, (B, n, heads, D), and returns all that the
    rows have with those behind, (B, W + n, heads, D). there: (B, W), which of W places are tokens of the row.
    """

    extend: Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]]
    there: Tensor
    count: int
    layers: Iterator[int] = field(default_factory=count_up)
    masks: dict[int, Tensor] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """B·n."""
        return len(self.there) * self.count

    @property
    def predict_at(self) -> Tensor:
        """All tokens."""
        return torch.arange(self.tokens, device=self.there.device)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, dropout: float, scaling: float | None) -> Tensor:
        """q: (B·n, H, D). k, v: (B·n, Hk, D). Returns (B·n, H, D)."""
        mask = self._mask_for(q.shape[1] // k.shape[1], q)
        q, k, v = (states.reshape(len(self.there), self.count, *states.shape[1:]) for states in (q, k, v))
        return _grouped(q, *self.extend(next(self.layers), k, v), mask, dropout, scaling).flatten(0, 1)

    def _mask_for(self, heads: int, like: Tensor) -> Tensor:
        """What to add to the scores, (B, 1, heads·n, W + n)."""
        if heads not in self.masks:
            own = torch.ones(self.count, self.count, dtype=torch.bool, device=like.device).tril_()
            rows = len(self.there)
            seen = torch.cat(
                [
                    self.there[:, None].expand(rows, self.count, self.there.shape[1]),
                    own.expand(rows, self.count, self.count),
                ],
                dim=2,
            )  # (B, n, W + n)
            mask = like.new_zeros(seen.shape).masked_fill_(~seen, float("-inf"))
            self.masks[heads] = mask.repeat(1, heads, 1)[:, None]
        return self.masks[heads]


def _taken(states: Tensor, at: Tensor) -> Tensor:
    """States (S, heads, D) at places (B, n): (B, n, heads, D)."""
    return states.index_select(0, at.flatten()).view(*at.shape, *states.shape[1:])


def _grouped(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, dropout: float, scaling: float | None) -> Tensor:
    """Attention of q (B, L, H, D) to k and v (B, n, Hk, D): (B, L, H, D). mask: (H/Hk·L, n), for all rows or each.

    The queries of all heads that share a key lie one after another, so that keys and values need no copies.
    """
    rows, tokens, heads, _ = q.shape
    shared_by = heads // k.shape[2]
    given = q.dtype
    if given == torch.bfloat16 and q.device.type == "cpu" and q.requires_grad:
        # The kernel for CPUs takes thrice as long for its gradient in 16 bits as in 32.
        q, k, v, mask = (states.float() for states in (q, k, v, mask))
    q = (
        q.view(rows, tokens, -1, shared_by, q.shape[3]).permute(0, 2, 3, 1, 4).flatten(2, 3)
    )  # (B, Hk, H/Hk·L, D)
    out = F.scaled_dot_product_attention(
        q, k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask, dropout_p=dropout, scale=scaling
    )
    out = out.to(given).view(rows, -1, shared_by, tokens, v.shape[3])
    return out.permute(0, 3, 1, 2, 4).flatten(2, 3)
