"""Closed-form gradients compared with autograd in float64, and what is stored for the backward pass."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from nlora.kernels.elementwise import rms_norm, silu_mul


@pytest.mark.parametrize("shape", [(5,), (3, 7), (2, 3, 16)])
def test_rms_norm_and_its_gradient(shape: tuple[int, ...]) -> None:
    torch.manual_seed(1)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(shape[-1], dtype=torch.float64)
    g = torch.randn(shape, dtype=torch.float64)
    plain = weight * x / (x.pow(2).mean(-1, keepdim=True) + 1e-3).sqrt()
    y = rms_norm(x, weight, 1e-3)
    torch.testing.assert_close(y, plain)
    torch.testing.assert_close(torch.autograd.grad(y, x, g), torch.autograd.grad(plain, x, g))


def test_rms_norm_of_zeros_stays_finite() -> None:
    x = torch.zeros(2, 4, requires_grad=True)
    rms_norm(x, torch.ones(4), 1e-6).sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()


def test_silu_mul_and_its_gradients() -> None:
    torch.manual_seed(2)
    gate, up = (torch.randn(4, 9, dtype=torch.float64, requires_grad=True) for _ in range(2))
    g = torch.randn(4, 9, dtype=torch.float64)
    plain = gate * torch.sigmoid(gate) * up
    y = silu_mul(gate, up)
    torch.testing.assert_close(y, plain)
    torch.testing.assert_close(
        torch.autograd.grad(y, (gate, up), g), torch.autograd.grad(plain, (gate, up), g)
    )


def kept_entries(function: Callable[[], Tensor]) -> int:
    """The number of entries that autograd stores for the backward pass."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = function()
    assert result.requires_grad
    return sum(kept.values())


def test_only_the_inputs_are_stored() -> None:
    x, up = (torch.randn(10, 100, requires_grad=True) for _ in range(2))
    weight = torch.ones(100)
    assert kept_entries(lambda: rms_norm(x, weight, 1e-6)) == 1000 + 100 + 10
    assert kept_entries(lambda: silu_mul(x, up)) == 2000
