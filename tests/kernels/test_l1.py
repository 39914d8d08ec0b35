"""The L1 kernels against plain autograd, gradcheck and their invariants."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nlora.kernels import blocks
from nlora.kernels.l1 import factor_l1, update_l1

SHAPES = [(16, 16), (48, 32), (32, 48), (1, 7), (7, 1), (130, 33)]  # (out, in)
RANKS = [1, 2, 8, 64]


def factors(
    out: int, n_in: int, r: int, dtype: torch.dtype = torch.float64, seed: int = 0
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    A = torch.randn(r, n_in, dtype=torch.float64, generator=generator).to(dtype).requires_grad_()
    B = torch.randn(out, r, dtype=torch.float64, generator=generator).to(dtype).requires_grad_()
    return A, B


def by_autograd(A: Tensor, B: Tensor, scaling: float) -> tuple[Tensor, Tensor, Tensor]:
    """Value and gradients of Σ|scaling·B·A| with the whole matrix stored."""
    A, B = A.detach().requires_grad_(), B.detach().requires_grad_()
    loss = (scaling * (B @ A)).abs().sum()
    return (loss.detach(), *torch.autograd.grad(loss, (A, B)))


def by_kernel(A: Tensor, B: Tensor, scaling: float) -> tuple[Tensor, Tensor, Tensor]:
    loss = update_l1(A, B, scaling)
    return (loss.detach(), *torch.autograd.grad(loss, (A, B)))


def assert_close(got: tuple[Tensor, ...], wanted: tuple[Tensor, ...], rtol: float, atol: float = 0.0) -> None:
    for g, w in zip(got, wanted, strict=True):
        torch.testing.assert_close(g, w, rtol=rtol, atol=atol)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("r", RANKS)
def test_update_l1_equals_autograd(shape: tuple[int, int], r: int) -> None:
    A, B = factors(*shape, r)
    assert_close(by_kernel(A, B, 4.0), by_autograd(A, B, 4.0), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_update_l1_in_float32(shape: tuple[int, int]) -> None:
    A, B = factors(*shape, 8, torch.float32)
    assert_close(by_kernel(A, B, 4.0), by_autograd(A, B, 4.0), rtol=1e-5, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(
    out=st.integers(1, 40), n_in=st.integers(1, 40), r=st.integers(1, 64),
    scaling=st.floats(-8, 8, allow_nan=False), seed=st.integers(0, 2**16), entries=st.integers(1, 400),
)  # fmt: skip
def test_update_l1_for_any_shape_scaling_and_block(
    out: int, n_in: int, r: int, scaling: float, seed: int, entries: int
) -> None:
    A, B = factors(out, n_in, r, seed=seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "CPU_BLOCK_ENTRIES", entries)
        got = by_kernel(A, B, scaling)
    assert_close(got, by_autograd(A, B, scaling), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("entries", [1, 32, 33 * 10, 33 * 129, 33 * 130])
def test_blocks_do_not_change_the_result(entries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """130 rows in blocks of 1, 1, 10, 129 (the last block one row) and 130."""
    A, B = factors(130, 33, 8)
    monkeypatch.setattr(blocks, "CPU_BLOCK_ENTRIES", entries)
    assert_close(by_kernel(A, B, 0.5), by_autograd(A, B, 0.5), rtol=1e-10, atol=1e-12)


def test_gradcheck_away_from_zeros() -> None:
    A, B = factors(6, 5, 3)
    with torch.no_grad():  # all positive, so that no entry of B·A crosses zero within gradcheck's step
        A.abs_().add_(0.5)
        B.abs_().add_(0.5)
    assert torch.autograd.gradcheck(lambda a, b: update_l1(a, b, 2.0), (A, B))
    A, B = factors(5, 5, 3)
    with torch.no_grad():
        A.abs_().add_(0.5)
        B.abs_().add_(0.5)
    assert torch.autograd.gradcheck(factor_l1, (A, B))


def test_a_fresh_adapter_has_neither_penalty_nor_gradient() -> None:
    A, B = factors(12, 20, 4)
    with torch.no_grad():
        B.zero_()
    loss, dA, dB = by_kernel(A, B, 4.0)
    assert loss == 0
    assert not dA.any()
    assert not dB.any()


def test_zero_entries_get_the_gradient_of_abs() -> None:
    A, B = factors(12, 20, 4)
    with torch.no_grad():
        B[::3] = 0
        A[:, ::2] = 0
    assert_close(by_kernel(A, B, 4.0), by_autograd(A, B, 4.0), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("frozen", ["A", "B", "both"])
def test_only_what_requires_a_gradient_gets_one(frozen: str) -> None:
    A, B = factors(9, 14, 3)
    wanted = by_autograd(A, B, 4.0)
    A.requires_grad_(frozen == "B")
    B.requires_grad_(frozen == "A")
    loss = update_l1(A, B, 4.0)
    torch.testing.assert_close(loss.detach(), wanted[0], rtol=1e-10, atol=0)
    assert loss.requires_grad == (frozen != "both")
    if loss.requires_grad:
        loss.backward()
    assert (A.grad is None) == (frozen != "B")
    assert (B.grad is None) == (frozen != "A")
    if A.grad is not None:
        torch.testing.assert_close(A.grad, wanted[1])
    if B.grad is not None:
        torch.testing.assert_close(B.grad, wanted[2])


def test_without_grad_mode_the_value_is_the_same() -> None:
    A, B = factors(9, 14, 3)
    with torch.no_grad():
        loss = update_l1(A, B, -4.0)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, by_autograd(A, B, 4.0)[0], rtol=1e-10, atol=0)


def test_the_upstream_gradient_multiplies() -> None:
    A, B = factors(9, 14, 3)
    (0.25 * update_l1(A, B, 4.0) ** 2).backward()
    loss, dA, dB = by_autograd(A, B, 4.0)
    assert A.grad is not None
    assert B.grad is not None
    assert_close((A.grad, B.grad), (0.5 * loss * dA, 0.5 * loss * dB), rtol=1e-10)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("function", [update_l1, factor_l1])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype, function: Any) -> None:
    """Compared with float32 on the same rounded factors, only the gradients are rounded once more."""
    A, B = factors(64, 64, 8, dtype)
    loss = function(A, B)
    loss.backward()
    assert loss.dtype == torch.float32
    A32, B32 = A.detach().float().requires_grad_(), B.detach().float().requires_grad_()
    wanted = function(A32, B32)
    wanted.backward()
    torch.testing.assert_close(loss, wanted, rtol=1e-6, atol=0)
    for half, full in ((A, A32), (B, B32)):
        assert half.grad is not None
        assert full.grad is not None
        assert half.grad.dtype == dtype
        assert torch.equal(half.grad, full.grad.to(dtype))


@pytest.mark.parametrize("function", [update_l1, factor_l1])
def test_autocast_does_not_lower_the_precision(function: Any) -> None:
    A, B = factors(64, 64, 8, torch.float32)
    wanted = function(A, B)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = function(A, B)
    assert got.dtype == torch.float32
    assert torch.equal(got, wanted)


class Largest(TorchDispatchMode):
    """Records the largest number of entries of any tensor that an operation returns."""

    entries = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.entries = max(self.entries, leaf.numel())
        return result


def test_no_matrix_of_the_updates_size_is_ever_allocated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)  # each thread has a part of the block
    out, n_in, r = 1024, 2048, 8
    A, B = factors(out, n_in, r, torch.float32)
    with Largest() as seen:
        update_l1(A, B, 4.0).backward()
    assert seen.entries <= 2 * blocks.CPU_BLOCK_ENTRIES < out * n_in
    with Largest() as plain:
        (B @ A).abs().sum().backward()
    assert plain.entries == out * n_in, "the recorder must see what autograd stores"


def test_the_gradients_are_not_views_of_a_shared_buffer() -> None:
    """Two penalties before one backward, as for two modules: each keeps its own gradients."""
    A1, B1 = factors(20, 10, 4, seed=1)
    A2, B2 = factors(20, 10, 4, seed=2)
    (update_l1(A1, B1) + update_l1(A2, B2)).backward()
    for A, B in ((A1, B1), (A2, B2)):
        _, dA, dB = by_autograd(A, B, 1.0)
        assert A.grad is not None
        assert B.grad is not None
        assert_close((A.grad, B.grad), (dA, dB), rtol=1e-10, atol=1e-12)


def test_factors_are_left_alone() -> None:
    A, B = factors(20, 10, 4)
    before = A.detach().clone(), B.detach().clone()
    update_l1(A, B, 3.0).backward()
    assert torch.equal(A, before[0])
    assert torch.equal(B, before[1])


def test_non_contiguous_factors() -> None:
    A, B = factors(20, 10, 4)
    At, Bt = (
        A.detach().t().contiguous().t().requires_grad_(),
        B.detach().t().contiguous().t().requires_grad_(),
    )
    assert not At.is_contiguous()
    assert_close(by_kernel(At, Bt, 3.0), by_autograd(A, B, 3.0), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinity_are_not_hidden(value: float) -> None:
    for spoil_a in (True, False):
        A, B = factors(6, 6, 3)
        with torch.no_grad():
            (A if spoil_a else B)[1, 1] = value
        assert not torch.isfinite(update_l1(A, B))
        assert not torch.isfinite(factor_l1(A, B))


def test_a_second_derivative_is_refused() -> None:
    A, B = factors(6, 5, 3)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(update_l1(A, B), A, create_graph=True)


def test_shapes_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match=r"A is 3x5 and B is 6x4"):
        update_l1(torch.zeros(3, 5), torch.zeros(6, 4))
    with pytest.raises(ValueError, match=r"A is 5 and B is 6x4"):
        update_l1(torch.zeros(5), torch.zeros(6, 4))
    with pytest.raises(ValueError, match=r"in = out, but A is 3x5 and B is 6x3; update_l1 is defined"):
        factor_l1(torch.zeros(3, 5), torch.zeros(6, 3))


def test_factor_l1_is_the_released_formula() -> None:
    A = torch.tensor([[1.0, -2.0], [0.5, 3.0]])  # (r, in)
    B = torch.tensor([[2.0, 0.0], [1.0, -1.0]])  # (out, r)
    # A·B = [[2 - 2, 0 + 2], [1 + 3, 0 - 3]]
    assert factor_l1(A, B) == 0 + 2 + 4 + 3
    # B·A = [[2, -4], [1 - 0.5, -2 - 3]]
    assert update_l1(A, B, 2.0) == 2 * (2 + 4 + 0.5 + 5)


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import sys, nlora.kernels; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_unknown_name_is_an_attribute_error() -> None:
    import nlora.kernels

    with pytest.raises(AttributeError, match="update_l2"):
        nlora.kernels.update_l2  # noqa: B018
