"""Σ F∘ΔW² over low-rank updates ΔW = s·B·A: squared entries, each with its own weight.

Two methods use this sum. In ELLA, F is the square of the sum of the earlier updates; in elastic weight consolidation,
it is the Fisher information of the earlier tasks.

F is as large as the frozen weight. Plain autograd would hold four more tensors of that size: ΔW, its square, the
product and its gradient. But with D = B·A and H = F∘D, the gradients of Σ F∘D² are dB = 2·H·Aᵀ and dA = 2·Bᵀ·H. So D is
computed once, in blocks of rows, as in `blocks.py`, and only results as small as the factors are kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from nlora.kernels import blocks
from nlora.kernels.blocks import working


def weighted_square_sum(
    As: Sequence[Tensor], Bs: Sequence[Tensor], scalings: Sequence[float], weights: Sequence[Tensor]
) -> Tensor:
    """Σ_m Σ weights_m ∘ (scaling_m·B_m·A_m)² over all entries of all modules: a scalar with gradients for A and B.

    As: (r, in) each; Bs: (out, r) each; weights: (out, in) each, >= 0 (not checked), without gradients. Shapes, ranks,
    scalings, dtypes and devices may differ from module to module; a module's weights must be on the device of its
    factors. Half-precision factors are computed in float32, and the result is float32 then. It is on the first module's
    device. Autocast does not lower the precision. There is no second derivative.

    Raises ValueError if there are no modules, the numbers of arguments differ, or shapes or devices do not fit.

    >>> weighted_square_sum([torch.ones(1, 3)], [torch.ones(2, 1)], [2.0], [torch.ones(2, 3)])
    tensor(24.)
    """
    if not len(As) == len(Bs) == len(scalings) == len(weights) > 0:
        raise ValueError(
            "weighted_square_sum needs as many A as B, scalings and weights, and at least one of each, "
            f"but there are {len(As)}, {len(Bs)}, {len(scalings)} and {len(weights)}"
        )
    for m, (A, B, F) in enumerate(zip(As, Bs, weights, strict=True)):
        _check(m, A, B, F)
    factors, scales = [*As, *Bs], [s * s for s in scalings]
    if torch.is_grad_enabled() and any(factor.requires_grad for factor in factors):
        return _WeightedSquareSum.apply(scales, weights, *factors)  # type: ignore[no-untyped-call, no-any-return]
    return _over_modules(scales, weights, factors, [False] * len(factors))[0]


class _WeightedSquareSum(torch.autograd.Function):
    """Σ_m scale_m·Σ F_m∘(B_m·A_m)², whose value and gradients come from the same pass over D."""

    @staticmethod
    def forward(ctx: Any, scales: list[float], weights: Sequence[Tensor], *factors: Tensor) -> Tensor:
        loss, grads = _over_modules(scales, weights, factors, ctx.needs_input_grad[2:])
        ctx.scales, ctx.dtypes = scales, [factor.dtype for factor in factors]
        ctx.save_for_backward(*grads)  # H·Aᵀ and Bᵀ·H; 2 and the scale are applied together with g
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph=True: dA depends on B, which saved tensors would hide
            raise RuntimeError(
                "weighted_square_sum has no second derivative; call backward without create_graph=True"
            )
        (g,) = grads  # ()
        results: list[Tensor | None] = [None, None]
        for d, scale, dtype in zip(ctx.saved_tensors, 2 * ctx.scales, ctx.dtypes, strict=True):
            results.append(None if d is None else (g.to(d.device) * (2 * scale) * d).to(dtype))
        return tuple(results)


def _over_modules(
    scales: Sequence[float], weights: Sequence[Tensor], factors: Sequence[Tensor], needs: Sequence[bool]
) -> tuple[Tensor, list[Tensor | None]]:
    """Σ_m scale_m·Σ F_m∘(B_m·A_m)², and half the unscaled gradients of the factors, all A before all B."""
    n = len(scales)
    grads: list[Tensor | None] = [None] * (2 * n)
    terms: list[Tensor] = []
    for m, (scale, F) in enumerate(zip(scales, weights, strict=True)):
        A, B = factors[m], factors[n + m]
        with torch.autocast(A.device.type, enabled=False):
            loss, grads[m], grads[n + m] = _walk(A, B, F.detach(), needs[m], needs[n + m])
        terms.append(loss * scale)
    device = terms[0].device  # a model may be spread over several
    return torch.stack([term.to(device) for term in terms]).sum(), grads


def _walk(
    A: Tensor, B: Tensor, F: Tensor, need_A: bool, need_B: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Σ F∘(B·A)² of one module, and Bᵀ·H and H·Aᵀ if needed (else None), with H = F∘(B·A).

    A: (r, in); B: (out, r); F: (out, in).
    """
    A = working(A)
    Bt = working(B).mT.contiguous()  # (r, out): faster than (out, r), both as a factor of D and as a result
    (r, n_in), out = A.shape, Bt.shape[1]
    cuts = list(_cuts(out, n_in, A.device))
    dA = torch.zeros_like(A, memory_format=torch.contiguous_format) if need_A else None
    dBt = torch.empty_like(Bt) if need_B else None
    loss = A.new_zeros(())
    buffer = A.new_empty(max((parts * rows for _, parts, rows in cuts), default=0) * n_in)
    for start, parts, rows in cuts:
        end = start + parts * rows
        b = Bt[:, start:end].view(r, parts, rows).transpose(0, 1)  # (parts, r, rows)
        a = A.expand(parts, r, n_in)
        f = F[start:end].reshape(parts, rows, n_in)  # copies one block at most
        D = torch.bmm(b.mT, a, out=buffer[: parts * rows * n_in].view(parts, rows, n_in))
        if dA is None and dBt is None:
            loss += D.square_().mul_(f).sum()
            continue
        H = D.mul_(f)
        if dA is not None:
            dA += torch.bmm(b, H).sum(0)
        if dBt is not None:
            dBt[:, start:end] = torch.bmm(a, H.mT).transpose(0, 1).reshape(r, parts * rows)
    # Σ F∘D² = Σ H∘(B·A) = Σ dA∘A = Σ dB∘B, so D is not needed again. NaN and inf arrive through the factors.
    if dA is not None:
        loss = (dA * A).sum()
    elif dBt is not None:
        loss = (dBt * Bt).sum()
    return loss, dA, None if dBt is None else dBt.mT.contiguous()


def _cuts(out: int, n_in: int, device: torch.device) -> Iterator[tuple[int, int, int]]:
    """The blocks of an (out, in) matrix, which cover all rows: first row, parts (one per thread), rows per part."""
    cpu = device.type == "cpu"
    entries = blocks.CPU_BLOCK_ENTRIES if cpu else blocks.GPU_BLOCK_ENTRIES
    threads = torch.get_num_threads() if cpu else 1
    most = max(1, entries // max(1, n_in))
    start = 0
    while start < out:
        parts = min(threads, out - start)
        rows = min(most, (out - start) // parts)
        yield start, parts, rows
        start += parts * rows


def _check(m: int, A: Tensor, B: Tensor, F: Tensor) -> None:
    """Raises ValueError if A is not (r, in), B is not (out, r), or F is not (out, in) on the same device."""
    if A.dim() != 2 or B.dim() != 2 or A.shape[0] != B.shape[1] or F.shape != (B.shape[0], A.shape[1]):
        a, b, f = ("x".join(str(size) for size in tensor.shape) for tensor in (A, B, F))
        raise ValueError(
            f"weighted_square_sum (module {m}) needs A of shape (r, in), B of shape (out, r) and weights of shape "
            f"(out, in), but A is {a}, B is {b} and the weights are {f}"
        )
    if not A.device == B.device == F.device:
        raise ValueError(
            f"weighted_square_sum (module {m}) needs its tensors on one device, but A is on {A.device}, "
            f"B on {B.device} and the weights on {F.device}"
        )
