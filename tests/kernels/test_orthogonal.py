"""O-LoRA's two sums over products of rows, and the norm, against loops and closed-form gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nlora.kernels.orthogonal import frobenius_norm, row_overlap_l1, row_overlap_l2_squared

GENERATOR = torch.Generator().manual_seed(5)
OLD = torch.randn(6, 7, generator=GENERATOR, dtype=torch.float64)  # two tasks of rank 3
NEW = torch.randn(4, 7, generator=GENERATOR, dtype=torch.float64)


def products() -> list[list[float]]:
    """Each old row times each new one."""
    return [[sum(a * b for a, b in zip(o, n, strict=True)) for n in NEW.tolist()] for o in OLD.tolist()]


def gradient(loss: Tensor, of: Tensor) -> Tensor:
    return torch.autograd.grad(loss, of)[0]


def test_l1_is_the_sum_of_absolute_products_with_its_closed_form_gradient() -> None:
    A = NEW.clone().requires_grad_()
    loss = row_overlap_l1(OLD, A)
    assert loss.item() == pytest.approx(sum(abs(p) for row in products() for p in row), rel=1e-12)
    signs = torch.tensor([[1.0 if p > 0 else -1.0 for p in row] for row in products()], dtype=torch.float64)
    torch.testing.assert_close(gradient(loss, A), signs.t() @ OLD)
    assert torch.autograd.gradcheck(lambda A: row_overlap_l1(OLD, A), A)


def test_l2_is_the_sum_over_tasks_of_squared_frobenius_norms() -> None:
    A = NEW.clone().requires_grad_()
    loss = row_overlap_l2_squared(OLD, A)
    wanted = sum(torch.linalg.norm(task @ NEW.t()).item() ** 2 for task in OLD.split(3))
    assert loss.item() == pytest.approx(wanted, rel=1e-12)
    torch.testing.assert_close(gradient(loss, A), 2 * (OLD @ NEW.t()).t() @ OLD)


def test_orthogonal_rows_cost_nothing_and_are_not_moved() -> None:
    A = torch.eye(4).requires_grad_()
    for overlap in (row_overlap_l1, row_overlap_l2_squared):
        loss = overlap(torch.zeros(2, 4), A)
        assert loss == 0
        assert not gradient(loss, A).any()


def test_the_old_rows_are_constants() -> None:
    old, A = OLD.clone().requires_grad_(), NEW.clone().requires_grad_()
    row_overlap_l1(old, A).backward()
    assert old.grad is None
    assert A.grad is not None


def test_the_norm_and_its_gradient() -> None:
    A = NEW.clone().requires_grad_()
    norm = frobenius_norm(A)
    wanted = sum(x * x for row in NEW.tolist() for x in row) ** 0.5
    assert norm.item() == pytest.approx(wanted, rel=1e-12)
    torch.testing.assert_close(gradient(norm, A), NEW / wanted)


def test_the_gradient_of_the_norm_of_zeros_is_zero() -> None:
    """A fresh adapter's B: 0/0 would make the whole step NaN."""
    B = torch.zeros(5, 3).requires_grad_()
    norm = frobenius_norm(B)
    assert norm == 0
    assert torch.equal(gradient(norm, B), torch.zeros(5, 3))


def test_half_precision_is_computed_in_float32() -> None:
    A = NEW.bfloat16().requires_grad_()
    for value, wanted in (
        (row_overlap_l1(OLD.float(), A), (OLD.float() @ A.detach().float().t()).abs().sum()),
        (row_overlap_l2_squared(OLD.float(), A), (OLD.float() @ A.detach().float().t()).square().sum()),
        (frobenius_norm(A), torch.linalg.norm(A.detach().float())),
    ):
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.detach(), wanted)
        assert gradient(value, A).dtype == torch.bfloat16


def test_autocast_does_not_lower_the_precision() -> None:
    old, A = OLD.float(), NEW.float()
    wanted = row_overlap_l1(old, A)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(row_overlap_l1(old, A), wanted)


def test_an_error_names_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"row_overlap_l1 .*A_old is 6x7 and A is 4x5"):
        row_overlap_l1(OLD, torch.zeros(4, 5))
    with pytest.raises(ValueError, match=r"row_overlap_l2_squared .*A is 7"):
        row_overlap_l2_squared(OLD, torch.zeros(7))
