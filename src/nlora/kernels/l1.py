"""The two L1 penalties of N-LoRA (arXiv 2410.10179) on low-rank updates ΔW = s·B·A.

- `update_l1`: Σ|s·B·A|, as in the paper, over the entries of the (out, in) update.
- `update_l1_sum`: Σ_m Σ|s_m·B_m·A_m|, over all modules of a model at once.
- `factor_l1`: Σ|A·B|, as in the released code, of an (r, r) matrix; only if in = out.

A is (r, in) and B is (out, r), as PEFT stores them. For every adapted module, plain autograd would hold D = B·A, |D|
and sign(D), each as large as the frozen weight. But with S = sign(D), the gradients are dB = s·S·Aᵀ and dA = s·Bᵀ·S. So
D is computed once, in blocks, and only results as small as the factors are kept. Modules of the same shape are computed
together (`blocks.py`), because a single small module would spend most of its time in calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nlora.kernels.blocks import walk, working


def update_l1(A: Tensor, B: Tensor, scaling: float = 1.0) -> Tensor:
    """Σ|scaling·B·A| over all entries of one update: a scalar with gradients for A and B.

    A: (r, in); B: (out, r). Half-precision factors are computed in float32, and the result is float32 then. The
    gradient at an entry that is exactly 0 is 0, as for torch.abs, so at B = 0 (a fresh adapter) both gradients are
    zero. Autocast does not lower the precision. There is no second derivative.

    Raises ValueError if the shapes do not fit. Source: arXiv 2410.10179.

    >>> update_l1(torch.ones(2, 3), torch.ones(4, 2), scaling=0.5)
    tensor(12.)
    """
    _check("update_l1", A, B)
    return _update_l1([A], [B], [scaling])


def update_l1_sum(As: Sequence[Tensor], Bs: Sequence[Tensor], scalings: Sequence[float]) -> Tensor:
    """Σ_m Σ|scaling_m·B_m·A_m| over the updates of many modules: the sum of `update_l1`, in less time.

    As: (r, in) each; Bs: (out, r) each. Shapes, ranks, scalings, dtypes and devices may differ from module to module;
    similar ones are computed together. The result is on the first module's device. On GPUs the blocks are larger; the
    speed there has not been measured yet.

    Raises ValueError if there are no modules, the numbers of factors and scalings differ, or shapes do not fit.
    """
    check_modules("update_l1_sum", As, Bs, scalings)
    return _update_l1(As, Bs, scalings)


def factor_l1(A: Tensor, B: Tensor) -> Tensor:
    """Σ|A·B| of the (r, r) product of the factors, unscaled: the penalty of the released N-LoRA code.

    A: (r, in); B: (out, r), with in = out. This is not the L1 norm of the update, which is the (out, in) product B·A.
    The two may differ by orders of magnitude, and so must their weights.

    Raises ValueError if in != out. Source: the released code of arXiv 2410.10179.

    >>> factor_l1(torch.ones(2, 3), torch.ones(3, 2))
    tensor(12.)
    """
    if A.dim() != 2 or B.dim() != 2 or A.shape != B.shape[::-1]:
        raise ValueError(
            f"factor_l1 needs A of shape (r, in) and B of shape (out, r) with in = out, "
            f"but A is {_shape(A)} and B is {_shape(B)}; update_l1 is defined for any in and out"
        )
    with torch.autocast(A.device.type, enabled=False):
        return (working(A) @ working(B)).abs().sum()  # (r, r) -> ()


def _update_l1(As: Sequence[Tensor], Bs: Sequence[Tensor], scalings: Sequence[float]) -> Tensor:
    """The sum, with an autograd node if a gradient is needed."""
    factors, scales = [*As, *Bs], [abs(s) for s in scalings]
    if torch.is_grad_enabled() and any(factor.requires_grad for factor in factors):
        return _UpdateL1.apply(scales, *factors)  # type: ignore[no-untyped-call, no-any-return]
    return _over_groups(scales, factors, [False] * len(factors))[0]


class _UpdateL1(torch.autograd.Function):
    """Σ_m scale_m·Σ|B_m·A_m|, whose value and gradients come from the same pass over D."""

    @staticmethod
    def forward(ctx: Any, scales: list[float], *factors: Tensor) -> Tensor:
        loss, grads = _over_groups(scales, factors, ctx.needs_input_grad[1:])
        ctx.scales, ctx.dtypes = scales, [factor.dtype for factor in factors]
        ctx.save_for_backward(*grads)  # of Σ|B·A|; the scale is applied together with g
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph=True: dA depends on B, which saved tensors would hide
            raise RuntimeError("update_l1 has no second derivative; call backward without create_graph=True")
        (g,) = grads  # ()
        on_device: dict[tuple[float, torch.device], Tensor] = {}
        results: list[Tensor | None] = [None]
        for d, scale, dtype in zip(ctx.saved_tensors, 2 * ctx.scales, ctx.dtypes, strict=True):
            if d is None:
                results.append(None)
                continue
            key = scale, d.device
            if key not in on_device:
                on_device[key] = g.to(d.device) * scale
            results.append((on_device[key] * d).to(dtype))  # a new tensor, not a view of a stack
        return tuple(results)


def _over_groups(
    scales: Sequence[float], factors: Sequence[Tensor], needs: Sequence[bool]
) -> tuple[Tensor, list[Tensor | None]]:
    """Σ_m scale_m·Σ|B_m·A_m|, and the unscaled gradients of the factors, all A before all B."""
    n = len(scales)
    groups: dict[tuple[Any, ...], list[int]] = {}
    for m, scale in enumerate(scales):
        A, B = factors[m], factors[n + m]
        alike = A.shape, B.shape, A.dtype, B.dtype, A.device, needs[m], needs[n + m], scale
        groups.setdefault(alike, []).append(m)
    grads: list[Tensor | None] = [None] * (2 * n)
    total: Tensor | None = None
    for modules in groups.values():
        first = modules[0]
        As, Bs = [factors[m] for m in modules], [factors[n + m] for m in modules]
        loss, dAs, dBs = walk(As, Bs, needs[first], needs[n + first])
        loss = loss * scales[first]
        total = loss if total is None else total + loss.to(total.device)  # a model may be spread over several
        for m, dA, dB in zip(modules, dAs, dBs, strict=True):
            grads[m], grads[n + m] = dA, dB
    assert total is not None  # there is at least one module
    return total, grads


def check_modules(name: str, As: Sequence[Tensor], Bs: Sequence[Tensor], scalings: Sequence[float]) -> None:
    """Raises ValueError if there are no modules, the numbers of arguments differ, or the shapes of factors do not fit.

    name: of the function that was given them.
    """
    if not len(As) == len(Bs) == len(scalings) > 0:
        raise ValueError(
            f"{name} needs as many A as B and scalings, and at least one of each, "
            f"but there are {len(As)}, {len(Bs)} and {len(scalings)}"
        )
    for m, (A, B) in enumerate(zip(As, Bs, strict=True)):
        _check(f"{name} (module {m})", A, B)


def _check(name: str, A: Tensor, B: Tensor) -> None:
    """Raises ValueError if A is not (r, in) or B is not (out, r)."""
    if A.dim() != 2 or B.dim() != 2 or A.shape[0] != B.shape[1]:
        raise ValueError(
            f"{name} needs A of shape (r, in) and B of shape (out, r), but A is {_shape(A)} and B is {_shape(B)}"
        )


def _shape(tensor: Tensor) -> str:
    return "x".join(str(size) for size in tensor.shape)
