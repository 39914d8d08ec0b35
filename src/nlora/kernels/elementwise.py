"""Elementwise parts of a transformer with gradients in closed form: fewer passes over memory, less stored.

Autograd stores every intermediate result for the backward pass: x, x·r and r for a norm; the gate, its silu and `up`
for a gated layer. Here only the inputs are stored and the rest is computed again, which costs less than writing it to
memory and reading it back.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """weight·x/√(mean(x²) + eps) over the last dimension, rounded once. x: (..., n); weight: (n), frozen.

    >>> rms_norm(torch.tensor([3.0, -3.0]), torch.ones(2), eps=0.0).round(decimals=3)
    tensor([ 1., -1.])
    """
    if x.device.type == "cuda":  # torch has one operation for it there, and another for its gradient
        return F.rms_norm(x, weight.shape, weight, eps)
    return cast(Tensor, _RmsNorm.apply(x, weight, eps))  # type: ignore[no-untyped-call]


def silu_mul(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate)·up, entry by entry, both (...)."""
    return cast(Tensor, _SiluMul.apply(gate, up))  # type: ignore[no-untyped-call]


def _wide(x: Tensor) -> Tensor:
    """At least float32, in which models compute their norms."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = _wide(x)
        square_sum = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_()  # (..., 1)
        r = square_sum.div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, r)
        return wide.mul(r).mul_(_wide(weight)).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        x, weight, r = ctx.saved_tensors
        g = _wide(grads[0]) * _wide(weight)
        # d(x·r)ᵀg = r·(g − x·r²·mean(g∘x))
        wide = _wide(x)
        along = torch.linalg.vecdot(g, wide).unsqueeze(-1).mul_(r).mul_(r).div_(x.shape[-1])  # (..., 1)
        return g.addcmul_(wide, along, value=-1).mul_(r).to(x.dtype), None, None


class _SiluMul(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        (g,) = grads
        return torch.ops.aten.silu_backward(g * up, gate), F.silu(gate).mul_(g)
