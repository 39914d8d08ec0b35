"""A frozen linear layer with a low-rank update beside it, in as few passes over memory as that takes.

    y = lora_linear(x, weight, bias, a, b, scaling=4.0, dropout=0.1)       # Wx + bias + s·B·A·dropout(x)

PEFT computes it from seven operations. Autograd keeps the dropped-out input of each layer for the backward pass, though
all layers on that input could share it, and every sum is a tensor of its own. Here the input itself is kept, with one
byte an entry of what was dropped, and the sums are made inside the matrix products.

The layer may be of fewer bits than its update, as PEFT keeps it: then the update is computed in its own, wider format.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from nlora.kernels.dropout import kept_entries, kept_scale


def lora_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    a: Tensor,
    b: Tensor,
    *,
    scaling: float,
    dropout: float,
    added: Sequence[Tensor] = (),
) -> Tensor:
    """W·x + bias + scaling·B·A·dropout(x) over the last dimension; gradients for x, A and B.

    x: (..., in). weight: (out, in) and bias: (out), frozen. a: (r, in). b: (out, r).
    dropout: the share of x's entries that the update does not see; see `nlora.kernels.dropout`.
    added: frozen matrices, like x, whose product with x, one after the other, is added: (k, in), (out, k), say.
    """
    return cast(Tensor, _LoraLinear.apply(x, weight, bias, a, b, scaling, dropout, *added))  # type: ignore[no-untyped-call]


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
        *added: Tensor,
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])  # (n, in)
        y = torch.mm(rows, weight.t()) if bias is None else torch.addmm(bias, rows, weight.t())
        if added:
            y.addmm_(_through(rows, added[:-1]), added[-1].t())
        kept = kept_entries(rows, dropout) if dropout else None
        z = torch.mm(_seen(rows, kept, a.dtype), a.t())  # (n, r)
        ctx.scale = scaling if kept is None else scaling * kept_scale(dropout)
        _add_product(y, z, b.t(), ctx.scale)
        ctx.save_for_backward(rows, weight, a, b, z, kept, *added)
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, a, b, z, kept, *added = ctx.saved_tensors
        narrow = grads[0].reshape(-1, grads[0].shape[-1])  # (n, out)
        g = narrow.to(a.dtype)
        if kept is not None:
            kept = kept.to(a.dtype)  # once for two products, each of which would do it
        g_b = torch.mm(g.t(), z).mul_(ctx.scale)
        g_z = torch.mm(g, b).mul_(ctx.scale)  # (n, r)
        g_a = torch.mm(g_z.t(), _seen(rows, kept, a.dtype))
        g_x = None
        if ctx.needs_input_grad[0]:
            g_x = torch.mm(g_z, a)
            if kept is not None:
                g_x.mul_(kept)
            g_x = g_x.to(rows.dtype).addmm_(narrow, weight)
            if added:
                g_x.addmm_(_through(narrow, [m.t() for m in reversed(added[1:])]), added[0])
            g_x = g_x.view(*grads[0].shape[:-1], -1)
        return g_x, None, None, g_a, g_b, None, None, *(None for _ in added)


def _through(rows: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """rows·M₁ᵀ·M₂ᵀ…, as linear layers do it."""
    for matrix in matrices:
        rows = torch.mm(rows, matrix.t())
    return rows


def _seen(rows: Tensor, kept: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The rows as the update sees them, not yet scaled."""
    wide = rows.to(dtype)
    return wide if kept is None else wide * kept


def _add_product(y: Tensor, z: Tensor, b: Tensor, scale: float) -> None:
    """y += scale·z·b, summed in the wider format of the two."""
    if y.dtype == z.dtype:
        y.addmm_(z, b, alpha=scale)
    else:
        y.add_(torch.mm(z, b), alpha=scale)
