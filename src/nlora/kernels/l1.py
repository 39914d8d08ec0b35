"""The two L1 penalties of N-LoRA (arXiv 2410.10179) on one low-rank update ΔW = s·B·A.

    update_l1(A, B, s)     # Σ|s·B·A|  what the paper writes: the (out, in) update's own entries
    factor_l1(A, B)        # Σ|A·B|    what the released code computes: an (r, r) matrix, only where in = out

A is (r, in) and B is (out, r), as PEFT stores them. Plain autograd would hold D = B·A, |D| and sign(D),
each of the size of the frozen weight, for every adapted module. But with S = sign(D) the gradients are
dB = s·S·Aᵀ and dA = s·Bᵀ·S, so `update_l1` walks D once, in blocks of rows that stay in the cache, and keeps
only results of the factors' own size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Entries of D held at a time. Measured on one CPU core (r = 8, in = 576 ... 4096), 0.5 to 1 MiB of float32 is
# fastest: it is written and read three times while it is in the second-level cache; 4 MiB and more take up to
# twice as long, 64 KiB too, for the calls. A GPU wants few launches instead; 64 MiB is little there.
CPU_BLOCK_ENTRIES = 2**18
GPU_BLOCK_ENTRIES = 2**24


def update_l1(A: Tensor, B: Tensor, scaling: float = 1.0) -> Tensor:
    """Σ|scaling·B·A| over all entries of one update: a scalar with gradients for A and B.

    A: (r, in); B: (out, r). Half-precision factors are computed in float32; the result then is float32.
    The gradient at an entry that is exactly 0 is 0, as for torch.abs; so at B = 0 (a fresh adapter) both
    gradients are zero. Autocast does not lower the precision. Second derivatives are refused.

    Raises ValueError where the shapes do not fit. Source: arXiv 2410.10179.
    """
    if A.dim() != 2 or B.dim() != 2 or A.shape[0] != B.shape[1]:
        raise ValueError(
            f"update_l1 needs A of shape (r, in) and B of shape (out, r), "
            f"but A is {_shape(A)} and B is {_shape(B)}"
        )
    if torch.is_grad_enabled() and (A.requires_grad or B.requires_grad):
        return _UpdateL1.apply(A, B, abs(scaling))  # type: ignore[no-untyped-call, no-any-return]
    return abs(scaling) * _walk(_working(A), _working(B), False, False)[0]


def factor_l1(A: Tensor, B: Tensor) -> Tensor:
    """Σ|A·B| of the (r, r) product of the factors, unscaled: the penalty of the released N-LoRA code.

    A: (r, in); B: (out, r), with in = out. It is not the L1 norm of the update, which is the (out, in)
    product the other way round: the two may differ by orders of magnitude, and so do their weights.

    Raises ValueError where in != out. Source: the released code of arXiv 2410.10179.
    """
    if A.dim() != 2 or B.dim() != 2 or A.shape != B.shape[::-1]:
        raise ValueError(
            f"factor_l1 needs A of shape (r, in) and B of shape (out, r) with in = out, "
            f"but A is {_shape(A)} and B is {_shape(B)}; update_l1 is defined for any in and out"
        )
    with torch.autocast(A.device.type, enabled=False):
        return (_working(A) @ _working(B)).abs().sum()  # (r, r) -> ()


class _UpdateL1(torch.autograd.Function):
    """scale·Σ|B·A|, whose gradients come from the same walk over D as the value."""

    @staticmethod
    def forward(ctx: Any, A: Tensor, B: Tensor, scale: float) -> Tensor:
        need_A, need_B, _ = ctx.needs_input_grad
        loss, dA, dB = _walk(_working(A), _working(B), need_A, need_B)
        ctx.save_for_backward(
            None if dA is None else dA.mul_(scale).to(A.dtype),  # (r, in)
            None if dB is None else dB.mul_(scale).to(B.dtype),  # (out, r)
        )
        return scale * loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        if torch.is_grad_enabled():  # create_graph=True: dA depends on B, and saved tensors would hide that
            raise RuntimeError("update_l1 has no second derivative; call backward without create_graph=True")
        (g,) = grads  # ()
        dA, dB = ctx.saved_tensors
        return (
            None if dA is None else (g * dA).to(dA.dtype),
            None if dB is None else (g * dB).to(dB.dtype),
            None,
        )


def _walk(A: Tensor, B: Tensor, need_A: bool, need_B: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Σ|D| for D = B·A, with dA = Bᵀ·sign(D) and dB = sign(D)·Aᵀ where needed; one block of rows at once."""
    A, B = A.detach(), B.detach()
    (out_features, r), in_features = B.shape, A.shape[1]
    entries = CPU_BLOCK_ENTRIES if A.device.type == "cpu" else GPU_BLOCK_ENTRIES
    rows = min(out_features, max(1, entries // max(1, in_features)))
    dA = torch.zeros_like(A) if need_A else None  # (r, in)
    dB = B.new_empty(out_features, r) if need_B else None  # (out, r)
    loss = A.new_zeros(())
    buffer = A.new_empty(rows, in_features)
    with torch.autocast(A.device.type, enabled=False):
        for start in range(0, out_features, rows):
            b = B[start : start + rows]  # (rows, r), the last block may have fewer
            D = torch.mm(b, A, out=buffer[: len(b)])  # (rows, in)
            if dA is None and dB is None:
                loss += D.abs_().sum()
                continue
            S = D.sign_()
            if dA is not None:
                dA.addmm_(b.t(), S)
            if dB is not None:
                torch.mm(S, A.t(), out=dB[start : start + rows])
        # Σ|D| = Σ S∘(B·A) = Σ dB∘B = Σ dA∘A: no second look at D. NaN and inf come through the factors.
        if dB is not None:
            loss = (dB * B).sum()
        elif dA is not None:
            loss = (dA * A).sum()
    return loss, dA, dB


def _working(factor: Tensor) -> Tensor:
    """The factor in the precision that sums are taken in: at least float32."""
    return factor.float() if factor.dtype in (torch.bfloat16, torch.float16) else factor


def _shape(tensor: Tensor) -> str:
    return "x".join(str(size) for size in tensor.shape)
