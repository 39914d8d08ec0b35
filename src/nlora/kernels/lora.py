"""A frozen linear layer with a low-rank update beside it, in as few passes over memory as that takes.

    y = lora_linear(x, weight, bias, a, b, scaling=4.0, dropout=0.1)       # Wx + bias + s·B·A·dropout(x)

PEFT computes it from seven operations. Autograd keeps the dropped-out input of each layer for the backward pass, though
all layers on that input could share it, and every sum is a tensor of its own. Here the input itself is kept, with one
byte an entry of what was dropped, and the sums are made inside the matrix products.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from nlora.kernels.dropout import kept_entries, kept_scale


def lora_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, *, scaling: float, dropout: float
) -> Tensor:
    """W·x + bias + scaling·B·A·dropout(x) over the last dimension; gradients for x, A and B.

    x: (..., in). weight: (out, in) and bias: (out), frozen. a: (r, in). b: (out, r).
    dropout: the share of x's entries that the update does not see; see `nlora.kernels.dropout`.
    """
    return cast(Tensor, _LoraLinear.apply(x, weight, bias, a, b, scaling, dropout))  # type: ignore[no-untyped-call]


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        scaling: float,
        dropout: float,
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])  # (n, in)
        kept = kept_entries(rows, dropout) if dropout else None
        y = torch.mm(rows, weight.t()) if bias is None else torch.addmm(bias, rows, weight.t())
        z = torch.mm(rows if kept is None else rows * kept, a.t())  # (n, r)
        ctx.scale = scaling if kept is None else scaling * kept_scale(dropout)
        y.addmm_(z, b.t(), alpha=ctx.scale)
        ctx.save_for_backward(rows, weight, a, b, z, kept)
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, a, b, z, kept = ctx.saved_tensors
        if kept is not None:
            kept = kept.to(rows.dtype)  # once for two products, each of which would do it
        g = grads[0].reshape(-1, grads[0].shape[-1])  # (n, out)
        g_b = torch.mm(g.t(), z).mul_(ctx.scale)
        g_z = torch.mm(g, b).mul_(ctx.scale)  # (n, r)
        g_a = torch.mm(g_z.t(), rows if kept is None else rows * kept)
        g_x = None
        if ctx.needs_input_grad[0]:
            g_x = torch.mm(g_z, a)
            if kept is not None:
                g_x.mul_(kept)
            g_x = g_x.addmm_(g, weight).view(*grads[0].shape[:-1], -1)
        return g_x, None, None, g_a, g_b, None, None
