"""The penalty of a whole model, computed over groups of modules, against plain autograd module by module."""

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
from nlora.kernels.l1 import factor_l1, update_l1, update_l1_sum


@dataclass
class Module:
    A: Tensor
    B: Tensor
    scaling: float


def module(
    out: int, n_in: int, r: int, scaling: float = 4.0, dtype: torch.dtype = torch.float64, seed: int = 0
) -> Module:
    generator = torch.Generator().manual_seed(seed)
    A = torch.randn(r, n_in, dtype=torch.float64, generator=generator).to(dtype).requires_grad_()
    B = torch.randn(out, r, dtype=torch.float64, generator=generator).to(dtype).requires_grad_()
    return Module(A, B, scaling)


def mixed(dtype: torch.dtype = torch.float64) -> list[Module]:
    """Groups of three, two and one; ranks 1 to 64; wide, tall and square; scalings of both signs."""
    shapes = [
        (24, 24, 8),
        (8, 24, 8),
        (24, 24, 8),
        (33, 7, 64),
        (24, 24, 8),
        (8, 24, 8),
        (1, 9, 1),
        (9, 1, 2),
    ]
    scalings = [4.0, 4.0, 4.0, -0.5, 4.0, 2.0, 1.0, 0.0]
    return [
        module(*shape, scaling=s, dtype=dtype, seed=i)
        for i, (shape, s) in enumerate(zip(shapes, scalings, strict=True))
    ]


def total(modules: Sequence[Module]) -> Tensor:
    return update_l1_sum([m.A for m in modules], [m.B for m in modules], [m.scaling for m in modules])


def plain(modules: Sequence[Module]) -> Tensor:
    """Σ_m Σ|s·B·A| with every matrix stored."""
    return torch.stack([(m.scaling * (m.B @ m.A)).abs().sum() for m in modules]).sum()


def leaves(modules: Sequence[Module]) -> list[Tensor]:
    return [factor for m in modules for factor in (m.A, m.B)]


def assert_as_plain(modules: Sequence[Module], rtol: float, atol: float) -> None:
    trained = [factor for factor in leaves(modules) if factor.requires_grad]
    got, wanted = total(modules), plain(modules)
    torch.testing.assert_close(got, wanted, rtol=rtol, atol=atol)
    for g, w in zip(torch.autograd.grad(got, trained), torch.autograd.grad(wanted, trained), strict=True):
        torch.testing.assert_close(g, w, rtol=rtol, atol=atol)


def cut(patch: pytest.MonkeyPatch, threads: int, entries: int, modules: int) -> None:
    """Blocks of this many entries per thread, for this many threads and this many modules at once."""
    patch.setattr(torch, "get_num_threads", lambda: threads)
    patch.setattr(blocks, "CPU_BLOCK_ENTRIES", entries)
    patch.setattr(blocks, "MODULES_AT_ONCE", modules)


@pytest.mark.parametrize("threads", [1, 2, 3, 16])
@pytest.mark.parametrize("entries", [1, 50, 24 * 24, 2**18])
@pytest.mark.parametrize("modules", [1, 2, 32])
def test_any_cut_into_blocks_equals_autograd(
    threads: int, entries: int, modules: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut(monkeypatch, threads, entries, modules)
    assert_as_plain(mixed(), rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("r", [1, 8, 64])
@pytest.mark.parametrize("shape", [(48, 48), (16, 48), (48, 16), (37, 20)])
def test_float32_equals_autograd_to_rounding(shape: tuple[int, int], r: int) -> None:
    modules = [module(*shape, r, dtype=torch.float32, seed=i) for i in range(3)]
    assert_as_plain(modules, rtol=2e-5, atol=2e-4)


@settings(max_examples=60, deadline=None)
@given(
    shapes=st.lists(st.sampled_from([(5, 7, 2), (12, 6, 3), (1, 1, 1), (17, 9, 64)]), min_size=1, max_size=6),
    frozen=st.integers(0, 2**12 - 1), threads=st.integers(1, 5), entries=st.integers(1, 200),
    modules=st.integers(1, 4), seed=st.integers(0, 2**16),
)  # fmt: skip
def test_any_mixture_equals_autograd(
    shapes: list[tuple[int, int, int]], frozen: int, threads: int, entries: int, modules: int, seed: int
) -> None:
    draw = random.Random(seed)
    made = [
        module(*shape, scaling=draw.choice([1.0, -4.0, 0.25]), seed=seed + i)
        for i, shape in enumerate(shapes)
    ]
    for i, factor in enumerate(leaves(made)):  # a bit of `frozen` each
        factor.requires_grad_(not frozen >> i & 1)
    with pytest.MonkeyPatch.context() as patch:
        cut(patch, threads, entries, modules)
        if any(factor.requires_grad for factor in leaves(made)):
            assert_as_plain(made, rtol=1e-9, atol=1e-10)
        else:
            torch.testing.assert_close(total(made), plain(made), rtol=1e-9, atol=1e-10)


def test_only_what_requires_a_gradient_gets_one() -> None:
    modules = mixed()
    for i, factor in enumerate(leaves(modules)):
        factor.requires_grad_(i % 3 == 0)
    total(modules).backward()
    for i, factor in enumerate(leaves(modules)):
        assert (factor.grad is not None) == (i % 3 == 0)


class Products(TorchDispatchMode):
    """Counts the matrix products."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += "mm" in func.overloadpacket.__name__
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("trained", "wanted"), [("", 1), ("A", 2), ("B", 2), ("AB", 3)])
def test_no_product_is_computed_for_a_gradient_that_is_not_needed(trained: str, wanted: int) -> None:
    """Of three equal modules in one block: D, and one more for each kind of factor that is trained."""
    modules = [module(6, 6, 2, seed=i) for i in range(3)]
    for m in modules:
        m.A.requires_grad_("A" in trained)
        m.B.requires_grad_("B" in trained)
    with Products() as products:
        loss = total(modules)
    assert products.count == wanted
    torch.testing.assert_close(loss, plain(modules), rtol=1e-10, atol=0)


def test_the_order_of_the_modules_does_not_matter() -> None:
    modules = mixed()
    shuffled = random.Random(1).sample(modules, len(modules))
    a, b = total(modules), total(shuffled)
    torch.testing.assert_close(a, b, rtol=1e-12, atol=0)
    for g, w in zip(
        torch.autograd.grad(a, leaves(modules)), torch.autograd.grad(b, leaves(modules)), strict=True
    ):
        torch.testing.assert_close(g, w, rtol=1e-12, atol=0)


def test_one_module_is_update_l1() -> None:
    m = module(20, 12, 4)
    assert torch.equal(total([m]), update_l1(m.A, m.B, m.scaling))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once(dtype: torch.dtype) -> None:
    """Compared with float32 on the same factors, times a weight that half precision cannot represent."""
    halves = [module(48, 32, 8, dtype=dtype, seed=i) for i in range(3)]
    fulls = [
        Module(m.A.detach().float().requires_grad_(), m.B.detach().float().requires_grad_(), m.scaling)
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


def test_modules_of_several_dtypes_add_up() -> None:
    modules = [
        module(12, 12, 4, dtype=dtype, seed=i)
        for i, dtype in enumerate([torch.bfloat16, torch.float32, torch.float64, torch.bfloat16])
    ]
    loss = total(modules)
    wanted = sum(float((4.0 * (m.B.detach().double() @ m.A.detach().double())).abs().sum()) for m in modules)
    assert float(loss.detach()) == pytest.approx(wanted, rel=1e-6)
    loss.backward()
    for factor in leaves(modules):
        assert factor.grad is not None
        assert factor.grad.dtype == factor.dtype


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("threads", [1, 2, 16])
@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("where", [0, 1, 7])
def test_nan_and_infinity_in_one_module_are_not_hidden(
    value: float, threads: int, trained: bool, where: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut(monkeypatch, threads, 50, 32)
    for factor in ("A", "B"):
        modules = [module(13, 6, 3, seed=i) for i in range(8)]
        for m in modules:
            m.A.requires_grad_(trained)
            m.B.requires_grad_(trained)
        with torch.no_grad():
            getattr(modules[where], factor)[-1, -1] = value
        assert not torch.isfinite(total(modules))


def test_a_module_that_is_not_finite_leaves_the_others_their_gradients(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cut(monkeypatch, 2, 2**18, 32)
    modules = [module(13, 6, 3, seed=i) for i in range(3)]
    wanted = torch.autograd.grad(plain(modules), leaves([modules[0], modules[2]]))
    with torch.no_grad():
        modules[1].B[0, 0] = float("nan")
    got = torch.autograd.grad(total(modules), leaves([modules[0], modules[2]]))
    for g, w in zip(got, wanted, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-10, atol=1e-12)


def test_fresh_adapters_have_neither_penalty_nor_gradient() -> None:
    modules = mixed()
    with torch.no_grad():
        for m in modules:
            m.B.zero_()
    loss = total(modules)
    assert loss == 0
    loss.backward()
    assert not any(factor.grad is None or factor.grad.any() for factor in leaves(modules))


def test_gradients_do_not_share_memory() -> None:
    """Clipping or zeroing one in place must not change another."""
    modules = mixed()
    total(modules).backward()
    storages = [f.grad.untyped_storage().data_ptr() for f in leaves(modules) if f.grad is not None]
    assert len(set(storages)) == len(leaves(modules))
    assert all(f.grad is not None and f.grad.stride() == f.stride() for f in leaves(modules))


def test_a_factor_shared_by_two_modules_gets_both_gradients() -> None:
    first = module(10, 6, 2)
    second = Module(first.A, module(10, 6, 2, seed=1).B, -1.0)
    wanted = torch.autograd.grad(plain([first, second]), [first.A, first.B, second.B])
    got = torch.autograd.grad(total([first, second]), [first.A, first.B, second.B])
    for g, w in zip(got, wanted, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-10, atol=1e-12)


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
    with pytest.raises(ValueError, match=r"module 1.*A is 3x5 and B is 6x4"):
        update_l1_sum([m.A, m.A], [m.B, torch.zeros(6, 4)], [1.0, 1.0])
    with pytest.raises(ValueError, match="there are 2, 1 and 1"):
        update_l1_sum([m.A, m.A], [m.B], [1.0])
    with pytest.raises(ValueError, match="at least one"):
        update_l1_sum([], [], [])


def test_it_is_not_the_sum_of_the_released_formula() -> None:
    m = module(6, 6, 3, scaling=1.0)
    assert not torch.isclose(total([m]), factor_l1(m.A, m.B))
