"""Dropout that draws 16 random bits per entry.

On a CPU, drawing the mask is most of the cost of dropout: torch draws a 64-bit number for every entry, one after
another. Here one such number decides four entries, and the mask for the backward pass takes one byte per entry instead
of four. An entry is kept with a probability of n/65536 and divided by exactly this probability, so the expectation is
exact. On other devices `Dropout` is torch's own.

The numbers come from torch's generator, or from `Streams`, which do not depend on what was drawn before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nlora.kernels.streams import Streams

_STEPS = 2**16
_ENTRIES_PER_DRAW = 4


class Dropout(nn.Dropout):
    """`nn.Dropout` with a cheaper mask on CPUs.

    p: the share of entries to drop, rounded to 1/65536. streams_of: the streams for a number of rows; see `streams`.
    """

    def __init__(self, p: float, streams_of: Callable[[int], Streams | None] = lambda rows: None) -> None:
        super().__init__(p)
        self._streams_of = streams_of

    def streams(self, x: Tensor) -> Streams | None:
        """Those that the mask of an input comes from; None: from torch's generator."""
        return self._streams_of(x.shape[:-1].numel())

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's name)
        """(...) -> (...): dropped entries are 0, and the others are scaled so that the mean stays the same."""
        if not self.training or input.device.type != "cpu" or not 0 < _dropped(self.p) < _STEPS:
            return F.dropout(input, self.p, self.training)
        return _Dropout.apply(input, self.p, self.streams(input))  # type: ignore[no-untyped-call, no-any-return]


def kept_entries(x: Tensor, p: float, streams: Streams | None = None) -> Tensor:
    """A random mask of x's shape: 0 for dropped entries, else 1. p: the share to drop, rounded to 1/65536.

    streams: of the rows of x, its last dimension; None: torch's generator.

    Bytes rather than booleans, because torch takes five to ten times as long to convert booleans.
    """
    if streams is None:
        draws = torch.empty(-(-x.numel() // _ENTRIES_PER_DRAW), dtype=torch.int64, device=x.device)
        draws.random_(-(2**63), None)
        bits = draws.view(torch.int16)[: x.numel()].view(x.shape)  # 65536 equally likely values
    else:
        draws = torch.from_numpy(streams.draw(-(-x.shape[-1] // _ENTRIES_PER_DRAW)).view(np.int64))
        bits = draws.view(torch.int16)[:, : x.shape[-1]].view(x.shape).to(x.device)
    return torch.ge(bits, _dropped(p) - _STEPS // 2, out=torch.empty_like(bits, dtype=torch.uint8))


def kept_scale(p: float) -> float:
    """The factor for kept entries, 1 / the probability of being kept.

    >>> kept_scale(0.5)
    2.0
    """
    return _STEPS / (_STEPS - _dropped(p))


def _dropped(p: float) -> int:
    """How many of the _STEPS values drop an entry."""
    return round(p * _STEPS)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float, streams: Streams | None) -> Tensor:
        kept = kept_entries(x, p, streams)
        ctx.save_for_backward(kept)
        ctx.scale = kept_scale(p)
        return (x * kept).mul_(ctx.scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (kept,) = ctx.saved_tensors
        return (grads[0] * kept).mul_(ctx.scale), None, None
