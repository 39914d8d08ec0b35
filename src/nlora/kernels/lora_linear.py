"""A frozen linear layer plus a low-rank update, in as few passes over memory as possible.

PEFT uses seven operations. Autograd then stores the input after dropout separately for each layer, though layers with
the same input could share it, and every sum is another tensor. Here the input itself is stored, plus one byte per entry
for the mask, and sums happen inside the matrix products.

The layer may have fewer bits than its update; the update is then computed in its own, wider dtype, as in PEFT.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from nlora.kernels.dropout import kept_entries, kept_scale
from nlora.kernels.streams import Streams


def lora_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    a: Tensor,
    b: Tensor,
    *,
    scaling: float,
    dropout: float,
    streams: Streams | None = None,
    added: Sequence[Tensor] = (),
) -> Tensor:
    """W·x + bias + scaling·B·A·dropout(x) over the last dimension; gradients for x, A and B.

    x: (..., in). weight: (out, in) and bias: (out), frozen. a: (r, in). b: (out, r).
    dropout: the share of x's entries that are dropped for the update, and streams: where their mask comes from; see
        `nlora.kernels.dropout`.
    added: frozen matrices of x's dtype, such as (k, in) and (out, k); x is multiplied with each in turn, and the result
        is added.

    >>> one = torch.ones(1, 1)
    >>> lora_linear(3 * one, 2 * one, None, one, one, scaling=4.0, dropout=0.0)
    tensor([[18.]])
    """
    applied = _LoraLinear.apply(x, weight, bias, a, b, scaling, dropout, streams, *added)  # type: ignore[no-untyped-call]
    return cast(Tensor, applied)


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
        streams: Streams | None,
        *added: Tensor,
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])  # (n, in)
        y = torch.mm(rows, weight.t()) if bias is None else torch.addmm(bias, rows, weight.t())
        if added:
            y.addmm_(_through(rows, added[:-1]), added[-1].t())
        kept = kept_entries(rows, dropout, streams) if dropout else None
        z = torch.mm(_seen(rows, kept, a.dtype), a.t())  # (n, r)
        ctx.scale = scaling if kept is None else scaling * kept_scale(dropout)
        _add_product(y, z, b.t(), ctx.scale)
        ctx.save_for_backward(rows, weight, a, b, z, kept, *added)
        return y.view(*x.shape[:-1], y.shape[-1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, a, b, z, kept, *added = ctx.saved_tensors
        narrow = grads[0].reshape(-1, grads[0].shape[-1])  # (n, out)
        g = narrow.to(a.dtype)
        if kept is not None:
            kept = kept.to(a.dtype)  # once, for two products
        g_b = torch.mm(g.t(), z).mul_(ctx.scale)
        g_z = torch.mm(g, b).mul_(ctx.scale)  # (n, r)
        g_a = torch.mm(g_z.t(), _seen(rows, kept, a.dtype)) if ctx.needs_input_grad[3] else None
        g_x = None
        if ctx.needs_input_grad[0]:
            g_x = torch.mm(g_z, a)
            if kept is not None:
                g_x.mul_(kept)
            g_x = g_x.to(rows.dtype).addmm_(narrow, weight)
            if added:
                g_x.addmm_(_through(narrow, [m.t() for m in reversed(added[1:])]), added[0])
            g_x = g_x.view(*grads[0].shape[:-1], g_x.shape[-1])
        return g_x, None, None, g_a, g_b, None, None, None, *(None for _ in added)


def _through(rows: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """rows·M₁ᵀ·M₂ᵀ…, as linear layers compute it."""
    for matrix in matrices:
        rows = torch.mm(rows, matrix.t())
    return rows


def _seen(rows: Tensor, kept: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The rows after dropout, not yet scaled."""
    wide = rows.to(dtype)
    return wide if kept is None else wide * kept


def _add_product(y: Tensor, z: Tensor, b: Tensor, scale: float) -> None:
    """y += scale·z·b, summed in the wider dtype of the two."""
    if y.dtype == z.dtype:
        y.addmm_(z, b, alpha=scale)
    else:
        y.add_(torch.mm(z, b), alpha=scale)
