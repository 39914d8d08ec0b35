"""Dropout that draws sixteen random bits for an entry instead of a whole random number.

    y = Dropout(0.1)(x)

On a CPU, drawing the mask is most of what dropout costs: torch draws a 64-bit number for every entry, one after
another. Here each such number decides four entries, and the mask that the backward pass needs is kept in one
byte an entry instead of four. An entry stays with a probability of n/65536, and what stays is divided by that very
probability, so the expectation is exact. On other devices this is torch's own dropout.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_STEPS = 2**16
_ENTRIES_PER_DRAW = 4


class Dropout(nn.Dropout):
    """`nn.Dropout` with a cheaper mask on CPUs. p: the share of entries that is dropped, to 1/65536."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's name)
        """(...) -> (...): some entries are 0, the others larger by what that takes away on average."""
        if not self.training or input.device.type != "cpu" or not 0 < _dropped(self.p) < _STEPS:
            return F.dropout(input, self.p, self.training)
        return _Dropout.apply(input, self.p)  # type: ignore[no-untyped-call, no-any-return]


def kept_entries(x: Tensor, p: float) -> Tensor:
    """A random mask of x's shape, 0 where an entry is dropped, else 1. p: the share of them, to 1/65536.

    Bytes, not booleans: those torch converts one by one, in five to ten times as long.
    """
    draws = torch.empty(-(-x.numel() // _ENTRIES_PER_DRAW), dtype=torch.int64).random_(-(2**63), None)
    bits = draws.view(torch.int16)[: x.numel()].view(x.shape)  # each of 65536 values as likely
    return torch.ge(bits, _dropped(p) - _STEPS // 2, out=torch.empty(x.shape, dtype=torch.uint8))


def kept_scale(p: float) -> float:
    """What the kept entries are multiplied by: 1 / the probability to be kept."""
    return _STEPS / (_STEPS - _dropped(p))


def _dropped(p: float) -> int:
    """Of _STEPS values, those that drop an entry."""
    return round(p * _STEPS)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        kept = kept_entries(x, p)
        ctx.save_for_backward(kept)
        ctx.scale = kept_scale(p)
        return (x * kept).mul_(ctx.scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (kept,) = ctx.saved_tensors
        return (grads[0] * kept).mul_(ctx.scale), None
