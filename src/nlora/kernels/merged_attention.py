"""Attention of many rows to a beginning that they share and to their own tokens, without a copy of it for each row.

Softmax over the keys of two parts is a mean of the parts' own results, weighted by the sums of their exponentials:

    out = e^(l1 − l)·out1 + e^(l2 − l)·out2,      e^l = e^l1 + e^l2,

where l1 and l2 are the logarithms of these sums. So all rows' queries go to the shared keys as if they were one long
row, and each row's go to its own keys; nothing is as large as rows times shared keys. In the backward pass a key's
weight is e^(score − l) whichever part it is in, so each part's own backward pass, given `out` and `l` of the whole,
returns the exact gradients. Ring attention (arXiv 2310.01889) merges blocks of keys in the same way.

On a CPU the parts run in the kernel behind torch's `scaled_dot_product_attention`, which also returns l; torch's public
functions that do are compiled, or for GPUs only. Elsewhere the parts are plain products.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from nlora.kernels.blocks import working

_KERNEL: Any = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
_KERNEL_BACKWARD: Any = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu_backward", None)
"""Not a public name: another version of torch may have others, and then the parts are plain products on a CPU, too."""


def merged_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    shared_k: Tensor,
    shared_v: Tensor,
    mask: Tensor,
    scale: float | None = None,
) -> Tensor:
    """Attention of B rows to P shared keys, which all queries see, and to their own: (B, heads, M, Dv).

    q: (B, heads, M, D). k: (B, heads, L, D). v: (B, heads, L, Dv). shared_k: (heads, P, D). shared_v: (heads, P, Dv).
    mask: (M, L), added to the scores of a row's own keys; each query has to see one of these.
    scale: of the scores; None: 1/√D. Gradients for all but the mask.

    >>> q, keys, values = torch.zeros(2, 1, 1, 4), torch.zeros(2, 1, 1, 4), torch.ones(2, 1, 1, 4)
    >>> merged_attention(q, keys, values, keys[0], 3 * values[0], torch.zeros(1, 1))[0]
    tensor([[[2., 2., 2., 2.]]])
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return cast(Tensor, _Merged.apply(q, k, v, shared_k, shared_v, mask, scale))  # type: ignore[no-untyped-call]


class _Merged(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        shared_k: Tensor,
        shared_v: Tensor,
        mask: Tensor,
        scale: float,
    ) -> Tensor:
        shared, shared_lse = _forward(_one_row(q), shared_k[None], shared_v[None], None, scale)
        shared, shared_lse = _rows(shared, len(q)), _rows(shared_lse[..., None], len(q))
        own, lse = _forward(q, k, v, mask, scale)
        lse = lse[..., None]
        both = torch.logaddexp(shared_lse, lse)  # (B, heads, M, 1)
        out = (shared * (shared_lse - both).exp_() + own * (lse - both).exp_()).to(q.dtype)
        ctx.save_for_backward(q, k, v, shared_k, shared_v, mask, out, both)
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, shared_k, shared_v, mask, out, lse = ctx.saved_tensors
        g = grads[0].contiguous()
        dq, dk, dv = _backward(g, q, k, v, out, lse[..., 0], mask, ctx.scale)
        g, long_q, out, lse = (_one_row(states) for states in (g, q, out, lse))
        more, d_shared_k, d_shared_v = _backward(
            g, long_q, shared_k[None], shared_v[None], out, lse[..., 0], None, ctx.scale
        )
        return dq + _rows(more, len(q)), dk, dv, d_shared_k[0], d_shared_v[0], None, None


def _one_row(states: Tensor) -> Tensor:
    """(B, heads, M, n) -> (1, heads, B·M, n)."""
    return states.transpose(0, 1).flatten(1, 2)[None]


def _rows(states: Tensor, rows: int) -> Tensor:
    """(1, heads, B·M, n) -> (B, heads, M, n)."""
    _, heads, queries, width = states.shape
    return states.reshape(heads, rows, queries // rows, width).transpose(0, 1)


def _forward(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """Attention (B, heads, M, Dv), and the logarithm of each query's sum of exponentials, (B, heads, M)."""
    if _has_kernel(q, v):
        out, lse = _KERNEL(q, k, v, 0.0, False, attn_mask=mask, scale=scale)
        return out, lse
    scores = _scores(q, k, mask, scale)
    lse = torch.logsumexp(scores, dim=-1)
    return torch.matmul(scores.sub_(lse[..., None]).exp_(), working(v)), lse


def _backward(
    g: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, mask: Tensor | None, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, of which k and v may be one part of the keys that `out` and `lse` are of."""
    if _has_kernel(q, v):
        dq, dk, dv = _KERNEL_BACKWARD(g, q, k, v, out, lse, 0.0, False, attn_mask=mask, scale=scale)
        return dq, dk, dv
    weights = _scores(q, k, mask, scale).sub_(lse[..., None]).exp_()
    g = working(g)
    dv = torch.matmul(weights.mT, g)
    along = (g * working(out)).sum(dim=-1, keepdim=True)
    d_scores = torch.matmul(g, working(v).mT).sub_(along).mul_(weights).mul_(scale)
    dq, dk = torch.matmul(d_scores, working(k)), torch.matmul(d_scores.mT, working(q))
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype)


def _has_kernel(q: Tensor, v: Tensor) -> bool:
    """Whether torch's kernel takes these states; it needs heads of one width."""
    return _KERNEL is not None and q.device.type == "cpu" and q.shape[-1] == v.shape[-1]


def _scores(q: Tensor, k: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """A new tensor, (B, heads, M, keys), in at least float32."""
    scores = torch.matmul(working(q), working(k).mT).mul_(scale)
    return scores if mask is None else scores.add_(mask)
