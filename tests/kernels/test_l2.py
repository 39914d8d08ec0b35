"""The squared norm of updates, against the whole updates."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nlora.kernels.l2 import update_l2_squared_sum

# (out, in, r): square, wide, tall, of rank 1, and of a rank above both sides.
SHAPES = [(12, 12, 4), (6, 20, 3), (33, 7, 5), (9, 11, 1), (2, 3, 8)]
SCALINGS = [4.0, -0.5, 1.0, 0.25, 2.0]


def factors(dtype: torch.dtype = torch.float64) -> tuple[list[Tensor], list[Tensor]]:
    draw = torch.Generator().manual_seed(0)

    def made(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=draw).to(dtype).requires_grad_()

    return [made(r, n_in) for _, n_in, r in SHAPES], [made(out, r) for out, _, r in SHAPES]


def dense(As: list[Tensor], Bs: list[Tensor]) -> Tensor:
    updates = [s * (B @ A) for A, B, s in zip(As, Bs, SCALINGS, strict=True)]
    return torch.stack([update.square().sum() for update in updates]).sum()


def test_value_and_gradients_are_those_of_the_whole_updates() -> None:
    As, Bs = factors()
    got, wanted = update_l2_squared_sum(As, Bs, SCALINGS), dense(As, Bs)
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=0)
    grads = torch.autograd.grad(got, [*As, *Bs])
    for grad, own in zip(grads, torch.autograd.grad(wanted, [*As, *Bs]), strict=True):
        torch.testing.assert_close(grad, own, rtol=1e-11, atol=1e-11)


def test_fresh_adapters_have_neither_penalty_nor_gradient() -> None:
    As, Bs = factors()
    with torch.no_grad():
        for B in Bs:
            B.zero_()
    total = update_l2_squared_sum(As, Bs, SCALINGS)
    assert total == 0
    assert not any(grad.any() for grad in torch.autograd.grad(total, [*As, *Bs]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    As, Bs = factors(dtype)
    got = update_l2_squared_sum(As, Bs, SCALINGS)
    assert got.dtype == torch.float32
    exact = [[f.detach().double().requires_grad_() for f in side] for side in (As, Bs)]
    wanted = dense(*exact)
    torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=0)
    grads = torch.autograd.grad(got, [*As, *Bs])
    for grad, own in zip(grads, torch.autograd.grad(wanted, [*exact[0], *exact[1]]), strict=True):
        assert grad.dtype == dtype
        torch.testing.assert_close(grad.double(), own, rtol=2 * torch.finfo(dtype).eps, atol=1e-4)


def test_autocast_does_not_lower_the_precision() -> None:
    As, Bs = factors(torch.float32)
    wanted = update_l2_squared_sum(As, Bs, SCALINGS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(update_l2_squared_sum(As, Bs, SCALINGS), wanted)


def test_an_error_names_what_does_not_fit() -> None:
    """A product of 1x1 and 3x3 would be computed without a word."""
    with pytest.raises(ValueError, match=r"update_l2_squared_sum \(module 0\).*A is 1x5 and B is 6x3"):
        update_l2_squared_sum([torch.ones(1, 5)], [torch.ones(6, 3)], [1.0])
    with pytest.raises(ValueError, match="at least one"):
        update_l2_squared_sum([], [], [])
