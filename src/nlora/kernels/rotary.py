"""Rotary position embedding (arXiv 2104.09864), forward and backward, in three passes over memory.

transformers computes x·cos + rotate_half(x)·sin: five passes, two of which copy halves, and again five backward, where
each half is padded with zeros. But the gradient is simply the rotation by the opposite angle.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor


def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Rotate the pairs (x[i], x[i + D/2]) of each head by the angles of their position.

    q: (B, H, S, D). k: (B, Hk, S, D). cos, sin: (B, S, D), whose second half repeats the first; not trained.
    """
    return cast(tuple[Tensor, Tensor], _Rotate.apply(q, k, cos, sin))  # type: ignore[no-untyped-call]


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(cos, sin)
        return _turned(q, cos, sin, 1), _turned(k, cos, sin, 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turned(grads[0], cos, sin, -1), _turned(grads[1], cos, sin, -1), None, None


def _turned(x: Tensor, cos: Tensor, sin: Tensor, direction: int) -> Tensor:
    """(B, H, S, D) -> (B, H, S, D), stored in memory as (B, S, H, D), the order of a projection's output."""
    half = x.shape[-1] // 2
    y = x.transpose(1, 2)
    y = y.reshape(*y.shape[:3], 2, half)  # (B, S, H, 2, D/2)
    sin = sin[:, :, None, :half]
    turned = y * cos[:, :, None, None, :half]
    turned[..., 0, :].addcmul_(y[..., 1, :], sin, value=-direction)
    turned[..., 1, :].addcmul_(y[..., 0, :], sin, value=direction)
    return turned.flatten(3).transpose(1, 2)
