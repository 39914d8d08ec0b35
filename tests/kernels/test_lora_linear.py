"""The fused LoRA layer against the formula through autograd, in double precision."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nlora.kernels.dropout import kept_entries, kept_scale
from nlora.kernels.lora_linear import lora_linear


def factors(bias: bool) -> tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=draw, dtype=torch.float64)

    x, weight, a, b = normal(2, 5, 6), normal(7, 6), normal(3, 6), normal(7, 3)
    return x.requires_grad_(), weight, normal(7) if bias else None, a.requires_grad_(), b.requires_grad_()


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("bias", [False, True])
def test_values_and_gradients_are_those_of_the_formula(bias: bool, dropout: float) -> None:
    x, weight, offset, a, b = factors(bias)
    upstream = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.manual_seed(3)
    seen = x * kept_entries(x.view(-1, 6), dropout).view_as(x) * kept_scale(dropout) if dropout else x
    expected = x @ weight.T + (0 if offset is None else offset) + 4.0 * seen @ a.T @ b.T
    wanted = torch.autograd.grad(expected, (x, a, b), upstream)
    torch.manual_seed(3)
    found = lora_linear(x, weight, offset, a, b, scaling=4.0, dropout=dropout)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    for mine, theirs in zip(torch.autograd.grad(found, (x, a, b), upstream), wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


def test_an_input_without_a_gradient_gets_none() -> None:
    x, weight, offset, a, b = factors(bias=True)
    lora_linear(x.detach(), weight, offset, a, b, scaling=1.0, dropout=0.0).sum().backward()
    assert x.grad is None
    assert a.grad is not None
    torch.testing.assert_close(a.grad, b.detach().sum(0)[:, None] * x.detach().sum((0, 1))[None])


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("shape", [(0, 6), (2, 0, 6)])
def test_no_rows_give_no_rows_and_gradients_of_zero(shape: tuple[int, ...], dropout: float) -> None:
    _, weight, offset, a, b = factors(bias=True)
    x = torch.zeros(*shape, dtype=torch.float64, requires_grad=True)
    found = lora_linear(x, weight, offset, a, b, scaling=1.0, dropout=dropout)
    assert found.shape == torch.nn.functional.linear(x, weight, offset).shape
    found.sum().backward()
    for tensor in (x, a, b):
        assert tensor.grad is not None
        assert tensor.grad.shape == tensor.shape
        assert not tensor.grad.any()
