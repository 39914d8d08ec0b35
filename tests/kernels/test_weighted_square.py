"""The weighted square of updates, computed in blocks, compared with plain autograd on full matrices."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from nlora.kernels import blocks
from nlora.kernels.weighted_square import weighted_square_sum


@dataclass
class Module:
    A: Tensor
    B: Tensor
    scaling: float
    F: Tensor


def module(
    out: int, n_in: int, r: int, scaling: float = 4.0, dtype: torch.dtype = torch.float64, seed: int = 0
) -> Module:
    generator = torch.Generator().manual_seed(seed)
    A = torch.randn(r, n_in, dtype=torch.float64, generator=generator).to(dtype).requires_grad_()
    B = torch.randn(out, r, dtype=torch.float64, generator=generator).to(dtype).requires_grad_()
    F = torch.rand(out, n_in, dtype=torch.float64, generator=generator).to(dtype)
    return Module(A, B, scaling, F)


def mixed(dtype: torch.dtype = torch.float64) -> list[Module]:
    """Equal and different shapes; ranks 1 to 64; wide, tall and square; scalings of both signs and zero."""
    shapes = [(24, 24, 8), (8, 24, 8), (24, 24, 8), (33, 7, 64), (1, 9, 1), (9, 1, 2), (5, 3, 2)]
    scalings = [4.0, 4.0, -0.5, 4.0, 2.0, 1.0, 0.0]
    return [
        module(*shape, scaling=s, dtype=dtype, seed=i)
        for i, (shape, s) in enumerate(zip(shapes, scalings, strict=True))
    ]


def total(modules: Sequence[Module]) -> Tensor:
    return weighted_square_sum(
        [m.A for m in modules], [m.B for m in modules], [m.scaling for m in modules], [m.F for m in modules]
    )


def plain(modules: Sequence[Module]) -> Tensor:
    """Σ_m Σ F∘(s·B·A)² with every matrix stored."""
    return torch.stack([(m.F * (m.scaling * (m.B @ m.A)) ** 2).sum() for m in modules]).sum()


def leaves(modules: Sequence[Module]) -> list[Tensor]:
    return [factor for m in modules for factor in (m.A, m.B)]


def assert_as_plain(modules: Sequence[Module], rtol: float, atol: float) -> None:
    trained = [factor for factor in leaves(modules) if factor.requires_grad]
    got, wanted = total(modules), plain(modules)
    torch.testing.assert_close(got, wanted, rtol=rtol, atol=atol)
    for g, w in zip(torch.autograd.grad(got, trained), torch.autograd.grad(wanted, trained), strict=True):
        torch.testing.assert_close(g, w, rtol=rtol, atol=atol)


def cut(patch: pytest.MonkeyPatch, threads: int, entries: int) -> None:
    """Blocks of this many entries per thread, for this many threads."""
    patch.setattr(torch, "get_num_threads", lambda: threads)
    patch.setattr(blocks, "CPU_BLOCK_ENTRIES", entries)


def test_it_is_the_weighted_square_entry_by_entry() -> None:
    m = module(4, 3, 2, scaling=-1.5)
    wanted = sum(
        m.F[i, j].item() * (m.scaling * sum(m.B[i, k].item() * m.A[k, j].item() for k in range(2))) ** 2
        for i in range(4)
        for j in range(3)
    )
    assert total([m]).item() == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("threads", [1, 2, 3, 16])
@pytest.mark.parametrize("entries", [1, 50, 24 * 24, 2**18])
def test_any_cut_into_blocks_equals_autograd(
    threads: int, entries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut(monkeypatch, threads, entries)
    assert_as_plain(mixed(), rtol=1e-10, atol=1e-11)


@settings(max_examples=50, deadline=None)
@given(
    shapes=st.lists(st.sampled_from([(5, 7, 2), (12, 6, 3), (1, 1, 1), (17, 9, 20)]), min_size=1, max_size=4),
    frozen=st.integers(0, 2**8 - 1), threads=st.integers(1, 5), entries=st.integers(1, 200),
    seed=st.integers(0, 2**16),
)  # fmt: skip
def test_any_mixture_equals_autograd(
    shapes: list[tuple[int, int, int]], frozen: int, threads: int, entries: int, seed: int
) -> None:
    draw = random.Random(seed)
    made = [
        module(*shape, scaling=draw.choice([1.0, -4.0, 0.25]), seed=seed + i)
        for i, shape in enumerate(shapes)
    ]
    for i, factor in enumerate(leaves(made)):  # a bit of `frozen` each
        factor.requires_grad_(not frozen >> i & 1)
    with pytest.MonkeyPatch.context() as patch:
        cut(patch, threads, entries)
        if any(factor.requires_grad for factor in leaves(made)):
            assert_as_plain(made, rtol=1e-9, atol=1e-10)
        else:
            torch.testing.assert_close(total(made), plain(made), rtol=1e-9, atol=1e-10)


def test_gradcheck() -> None:
    modules = [module(5, 4, 2, seed=1), module(3, 6, 2, scaling=0.5, seed=2)]

    def loss(*factors: Tensor) -> Tensor:
        return weighted_square_sum(factors[::2], factors[1::2], [4.0, 0.5], [m.F for m in modules])

    assert torch.autograd.gradcheck(loss, leaves(modules))


def test_float32_equals_autograd_to_rounding() -> None:
    modules = [module(48, 32, 8, dtype=torch.float32, seed=i) for i in range(3)]
    assert_as_plain(modules, rtol=2e-5, atol=1e-2)  # gradients of 1e3 and more


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once(dtype: torch.dtype) -> None:
    halves = [module(24, 16, 4, dtype=dtype, seed=i, scaling=0.5) for i in range(2)]
    fulls = [
        Module(
            m.A.detach().float().requires_grad_(),
            m.B.detach().float().requires_grad_(),
            m.scaling,
            m.F.float(),
        )
        for m in halves
    ]
    loss = total(halves)
    assert loss.dtype == torch.float32
    (0.3 * loss).backward()
    (0.3 * total(fulls)).backward()
    for half, full in zip(leaves(halves), leaves(fulls), strict=True):
        assert half.grad is not None
        assert full.grad is not None
        assert half.grad.dtype == dtype
        assert torch.equal(half.grad, full.grad.to(dtype))


def test_weights_of_another_precision() -> None:
    """Half-precision factors with float32 weights, as in a run."""
    m = module(12, 10, 4, dtype=torch.bfloat16)
    m.F = torch.rand(12, 10)
    wanted = (m.F * (4.0 * (m.B.detach().float() @ m.A.detach().float())) ** 2).sum()
    torch.testing.assert_close(total([m]), wanted, rtol=1e-5, atol=0)


def test_tensors_that_are_not_contiguous(monkeypatch: pytest.MonkeyPatch) -> None:
    cut(monkeypatch, 2, 40)
    m = module(13, 9, 3)
    stretched = Module(
        m.A.detach().t().contiguous().t().requires_grad_(),
        torch.stack([m.B.detach(), m.B.detach()], dim=-1)[..., 0].requires_grad_(),
        m.scaling,
        m.F.t().contiguous().t(),
    )
    assert not any(t.is_contiguous() for t in (stretched.A, stretched.B, stretched.F))
    torch.testing.assert_close(total([stretched]), total([m]), rtol=1e-12, atol=0)
    assert_as_plain([stretched], rtol=1e-10, atol=1e-11)


def test_one_weight_for_a_whole_row_may_be_expanded() -> None:
    m = module(6, 5, 2)
    m.F = torch.rand(6, 1, dtype=torch.float64).expand(6, 5)
    assert_as_plain([m], rtol=1e-10, atol=1e-12)


def test_only_what_requires_a_gradient_gets_one() -> None:
    modules = mixed()
    for i, factor in enumerate(leaves(modules)):
        factor.requires_grad_(i % 3 == 0)
    modules[0].F.requires_grad_()
    total(modules).backward()
    for i, factor in enumerate(leaves(modules)):
        assert (factor.grad is not None) == (i % 3 == 0)
    assert modules[0].F.grad is None


def test_without_gradients_the_value_is_the_same() -> None:
    modules = mixed()
    with torch.no_grad():
        value = total(modules)
    assert not value.requires_grad
    torch.testing.assert_close(value, total(modules).detach(), rtol=1e-12, atol=0)


class Largest(TorchDispatchMode):
    """Records the entries of the largest new tensor; views of `known` do not count."""

    def __init__(self, known: Tensor) -> None:
        super().__init__()
        self.known, self.entries = known.data_ptr(), 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else [made]:
            if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() != self.known:
                self.entries = max(self.entries, tensor.numel())
        return made


def test_nothing_as_large_as_the_update_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    cut(monkeypatch, 2, 400)
    m = module(100, 80, 2)
    with Largest(m.F) as largest:
        total([m]).backward()
    assert largest.entries == 2 * 5 * 80  # two threads with five rows each, of 100 x 80


def test_fresh_adapters_have_neither_penalty_nor_gradient() -> None:
    modules = mixed()
    with torch.no_grad():
        for m in modules:
            m.B.zero_()
    loss = total(modules)
    assert loss == 0
    loss.backward()
    assert not any(factor.grad is None or factor.grad.any() for factor in leaves(modules))


def test_entries_of_weight_zero_are_free() -> None:
    m = module(6, 5, 2)
    m.F = torch.zeros_like(m.F)
    m.F[2, 3] = 2.0
    wanted = 2.0 * (m.scaling * (m.B[2] @ m.A[:, 3])).item() ** 2
    loss = total([m])
    loss.backward()
    assert loss.item() == pytest.approx(wanted, rel=1e-12)
    assert m.B.grad is not None
    assert m.A.grad is not None
    assert m.B.grad.any(1).nonzero().flatten().tolist() == [2]
    assert m.A.grad.any(0).nonzero().flatten().tolist() == [3]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("trained", [True, False])
def test_nan_and_infinity_in_one_module_are_not_hidden(value: float, trained: bool) -> None:
    for factor in ("A", "B"):
        modules = [module(13, 6, 3, seed=i) for i in range(3)]
        for m in modules:
            m.A.requires_grad_(trained)
            m.B.requires_grad_(trained)
        with torch.no_grad():
            getattr(modules[1], factor)[-1, -1] = value
        assert not torch.isfinite(total(modules))


def test_gradients_do_not_share_memory() -> None:
    """Clipping or zeroing one in place must not change another."""
    modules = mixed()
    total(modules).backward()
    storages = [f.grad.untyped_storage().data_ptr() for f in leaves(modules) if f.grad is not None]
    assert len(set(storages)) == len(leaves(modules))
    assert all(f.grad is not None and f.grad.stride() == f.stride() for f in leaves(modules))


def test_autocast_does_not_lower_the_precision() -> None:
    modules = mixed(torch.float32)
    wanted = total(modules)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = total(modules)
    assert torch.equal(got, wanted)


def test_a_second_derivative_is_refused() -> None:
    modules = mixed()
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(total(modules), modules[0].A, create_graph=True)


def test_an_error_names_what_does_not_fit() -> None:
    m = module(6, 5, 3)
    with pytest.raises(ValueError, match=r"module 1.*A is 3x5, B is 6x4 and the weights are 6x5"):
        weighted_square_sum([m.A, m.A], [m.B, torch.zeros(6, 4)], [1.0, 1.0], [m.F, m.F])
    with pytest.raises(ValueError, match=r"module 0.*the weights are 5x6"):
        weighted_square_sum([m.A], [m.B], [1.0], [m.F.t()])
    with pytest.raises(ValueError, match="on meta"):
        weighted_square_sum([m.A], [m.B], [1.0], [m.F.to("meta")])
    with pytest.raises(ValueError, match="there are 1, 1, 1 and 0"):
        weighted_square_sum([m.A], [m.B], [1.0], [])
    with pytest.raises(ValueError, match="at least one"):
        weighted_square_sum([], [], [], [])
