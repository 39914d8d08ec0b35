"""The distillation loss compared with its definition, and where its gradient is zero."""

from __future__ import annotations

import pytest
import torch

from nlora.kernels.distillation import distillation

GENERATOR = torch.Generator().manual_seed(1)
NEW = torch.randn(2, 3, 7, generator=GENERATOR, dtype=torch.float32)
OLD = torch.randn(2, 3, 7, generator=GENERATOR, dtype=torch.float32)
TARGETS = torch.tensor([[1, 2, -100], [3, -100, -100]])


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_it_is_the_divergence_summed_over_the_answer_tokens(temperature: float) -> None:
    expected = torch.zeros(())
    for row, column in ((0, 0), (0, 1), (1, 0)):
        p = torch.softmax(OLD[row, column] / temperature, -1)
        q = torch.softmax(NEW[row, column] / temperature, -1)
        expected += temperature**2 * (p * (p / q).log()).sum()
    torch.testing.assert_close(distillation(NEW, OLD, TARGETS, temperature), expected)


def test_it_is_zero_with_a_zero_gradient_where_nothing_has_changed() -> None:
    new = OLD.clone().requires_grad_()
    loss = distillation(new, OLD, TARGETS, 2.0)
    (gradient,) = torch.autograd.grad(loss, new)
    assert abs(loss.item()) < 1e-6
    assert gradient.abs().max() < 1e-6


def test_the_old_model_and_the_positions_without_an_answer_get_no_gradient() -> None:
    new, old = NEW.clone().requires_grad_(), OLD.clone().requires_grad_()
    distillation(new, old, TARGETS, 2.0).backward()
    assert old.grad is None
    assert new.grad is not None
    assert not new.grad[TARGETS == -100].any()
    assert new.grad[TARGETS != -100].any()
