"""Attention of rows of tokens to rows of keys with one mask, whatever number of heads shares a key."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional as F

_MASK_WIDTH = 16
"""torch's kernels for GPUs copy a mask in each call unless its rows begin at multiples of this many numbers."""
_pretended: list[str] = []


@contextmanager
def pretending(device: str) -> Iterator[None]:
    """A block in which tensors are treated as those of this type of device, which fake ones on the CPU stand for."""
    _pretended.append(device)
    try:
        yield
    finally:
        _pretended.pop()


def kind_of(device: torch.device) -> str:
    """The type of a device, or the one that is pretended."""
    return _pretended[-1] if _pretended else device.type


def masked_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, dropout: float, scaling: float | None
) -> Tensor:
    """Attention of q (B, L, H, D) to k and v (B, n, Hk, D): (B, L, H, D). mask: (H/Hk·L, n), one or one per row.

    The queries of all heads that share a key are consecutive, so keys and values need not be repeated.
    """
    dtype, tokens = q.dtype, q.shape[1]
    q, k, v, mask = wider_on_cpu(q, k, v, mask)
    out = F.scaled_dot_product_attention(
        by_key_head(q, k.shape[2]),
        k.transpose(1, 2),
        v.transpose(1, 2),
        attn_mask=mask,
        dropout_p=dropout,
        scale=scaling,
    )
    return by_token(out.to(dtype), tokens)


def wider_on_cpu(q: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """On a CPU, the kernel's gradient takes three times as long in 16 bits as in 32."""
    wider = q.dtype == torch.bfloat16 and kind_of(q.device) == "cpu" and q.requires_grad
    return tuple(states.float() for states in (q, *others)) if wider else (q, *others)


def by_key_head(q: Tensor, key_heads: int) -> Tensor:
    """(B, L, H, D) -> (B, Hk, H/Hk·L, D)."""
    rows, tokens, heads, width = q.shape
    shared_by = heads // key_heads
    return q.view(rows, tokens, -1, shared_by, width).permute(0, 2, 3, 1, 4).flatten(2, 3)


def by_token(out: Tensor, tokens: int) -> Tensor:
    """(B, Hk, H/Hk·L, D) -> (B, L, H, D)."""
    rows, key_heads, _, width = out.shape
    return out.view(rows, key_heads, -1, tokens, width).permute(0, 3, 1, 2, 4).flatten(2, 3)


def for_heads(mask: Tensor, heads: int) -> Tensor:
    """A mask (n, m) for the queries of several heads, (heads·n, m), laid out so that a GPU reads it without a copy."""
    width = mask.shape[1]
    if kind_of(mask.device) == "cpu":
        return mask.repeat(heads, 1)
    return F.pad(mask, (0, -width % _MASK_WIDTH)).repeat(heads, 1)[:, :width]
