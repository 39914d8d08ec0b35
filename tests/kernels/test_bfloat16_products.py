"""bfloat16 matrices multiplied in float32, as on a processor without instructions for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.library import _scoped_library
from torch.nn import functional as F

from nlora.kernels import bfloat16_products
from nlora.kernels.bfloat16_products import addmm, addmm_, baddbmm, bmm, mm, register, widen_products
from nlora.kernels.lora_linear import lora_linear
from nlora.models.backbone import load_backbone

DRAW = torch.Generator().manual_seed(0)


def whole(*size: int) -> Tensor:
    """Whole numbers, whose sums float32 and float64 both have exactly, so that only the last rounding counts."""
    return torch.randint(-9, 10, size, generator=DRAW).bfloat16()


def rounded(exact: Tensor) -> Tensor:
    assert exact.dtype == torch.float64
    return exact.bfloat16()


@pytest.fixture(params=[7, 40, 2**20])
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of less than a column, of a few, and of all."""
    monkeypatch.setattr(bfloat16_products, "BLOCK_NUMBERS", request.param)


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """torch multiplies with them, on any processor. The columns of each block so far."""
    seen: list[int] = []

    def counted(right: Tensor) -> Any:
        for columns in original(right):
            seen.append(len(range(right.shape[1])[columns]))
            yield columns

    original = bfloat16_products._blocks
    monkeypatch.setattr(bfloat16_products, "_blocks", counted)
    with _scoped_library("aten", "IMPL") as library:
        register(library)
        yield seen


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize(
    ("n", "k", "m"), [(5, 8, 13), (8, 8, 8), (1, 9, 4), (3, 1, 1), (2, 0, 3), (0, 4, 2), (2, 3, 0)]
)
@pytest.mark.parametrize("transposed", [True, False])
def test_a_product_is_rounded_once(n: int, k: int, m: int, transposed: bool) -> None:
    left, right = whole(n, k), whole(m, k).t() if transposed else whole(k, m)
    exact = left.double() @ right.double()
    assert torch.equal(mm(left, right), rounded(exact))
    for added in (whole(m), whole(n, m), whole(1, m), whole(n, 1)):
        assert torch.equal(addmm(added, left, right), rounded(added.double() + exact))
        assert torch.equal(
            addmm(added, left, right, beta=3, alpha=-2), rounded(3 * added.double() - 2 * exact)
        )
    added = whole(n, m)
    expected = rounded(added.double() + 2 * exact)
    assert addmm_(added, left, right, alpha=2) is added
    assert torch.equal(added, expected)


def test_products_of_a_batch_are_rounded_once() -> None:
    left, right, added = whole(3, 4, 5), whole(3, 5, 6), whole(3, 4, 6)
    exact = left.double() @ right.double()
    assert torch.equal(bmm(left, right), rounded(exact))
    assert torch.equal(baddbmm(added, left, right, beta=2, alpha=-1), rounded(2 * added.double() - exact))


def test_with_beta_zero_what_is_added_does_not_count() -> None:
    left, right = whole(3, 4), whole(4, 5)
    added = torch.full((3, 5), float("nan")).bfloat16()
    assert torch.equal(addmm(added, left, right, beta=0), mm(left, right))


def test_torch_multiplies_with_them(registered: list[int]) -> None:
    x, weight, bias = whole(6, 8), whole(10, 8), whole(10)
    assert torch.equal(F.linear(x, weight), rounded(x.double() @ weight.double().t()))
    assert torch.equal(F.linear(x, weight, bias), rounded(x.double() @ weight.double().t() + bias.double()))
    assert registered == [10, 10]
    q, k = whole(2, 3, 4, 8), whole(2, 3, 5, 8)
    assert torch.equal(q @ k.mT, rounded(q.double() @ k.double().mT))
    assert torch.equal(
        torch.einsum("bhqd,bhkd->bhqk", q, k),
        rounded(torch.einsum("bhqd,bhkd->bhqk", q.double(), k.double())),
    )
    y = whole(6, 10)
    expected = rounded(y.double() + x.double() @ weight.double().t())
    assert torch.equal(y.addmm_(x, weight.t()), expected)


def test_products_into_a_given_tensor_are_theirs_too(registered: list[int]) -> None:
    """As torch multiplies the tokens of each expert."""
    left, right, out = whole(6, 8), whole(8, 10), whole(6, 10)
    assert torch.mm(left, right, out=out) is out
    assert torch.equal(out, rounded(left.double() @ right.double()))
    assert registered == [10]
    tokens, experts = whole(6, 8).requires_grad_(), whole(2, 8, 16)
    each = F.grouped_mm(tokens, experts, offs=torch.tensor([2, 6], dtype=torch.int32))
    parts = [
        tokens.detach()[:2].double() @ experts[0].double(),
        tokens.detach()[2:].double() @ experts[1].double(),
    ]
    assert torch.equal(each, rounded(torch.cat(parts)))
    each.backward(torch.ones_like(each))
    sums = experts.double().sum(2).repeat_interleave(torch.tensor([2, 4]), dim=0)
    assert tokens.grad is not None
    assert torch.equal(tokens.grad, rounded(sums))
    assert len(registered) == 5
    batch, other = whole(3, 4, 5), whole(3, 5, 6)
    assert torch.equal(torch.bmm(batch, other, out=whole(3, 4, 6)), rounded(batch.double() @ other.double()))
    empty = torch.empty(0, dtype=torch.bfloat16)
    assert torch.equal(torch.mm(left, right, out=empty), out)  # made larger, as torch does
    with pytest.raises(RuntimeError, match="dtype"):
        torch.mm(left, right, out=torch.empty(6, 10))


def test_gradients_go_through_them(registered: list[int]) -> None:
    x, weight = whole(6, 8).requires_grad_(), whole(10, 8).requires_grad_()
    g = whole(6, 10)
    F.linear(x, weight).backward(g)
    assert x.grad is not None
    assert weight.grad is not None
    assert torch.equal(x.grad, rounded(g.double() @ weight.detach().double()))
    assert torch.equal(weight.grad, rounded(g.double().t() @ x.detach().double()))
    assert len(registered) == 3


def test_a_lora_layer_uses_them(registered: list[int]) -> None:
    x, weight = whole(6, 8).requires_grad_(), whole(10, 8)
    a, b = torch.zeros(2, 8, requires_grad=True), torch.zeros(10, 2, requires_grad=True)
    y = lora_linear(x, weight, None, a, b, scaling=1.0, dropout=0.0)
    y.backward(torch.ones_like(y))
    assert x.grad is not None
    assert torch.equal(x.grad, weight.double().sum(0).expand(6, 8).bfloat16())
    assert registered == [10, 8]  # forward, and the gradient of x; the update itself is float32


def test_one_row_times_a_weight_stays_with_torch(registered: list[int]) -> None:
    x, weight = whole(1, 8), whole(10, 8)
    assert torch.equal(F.linear(x, weight), rounded(x.double() @ weight.double().t()))
    assert registered == []


def test_other_numbers_stay_with_torch(registered: list[int]) -> None:
    for dtype in (torch.float32, torch.float64, torch.float16, torch.int64):
        left, right = whole(5, 8).to(dtype), whole(8, 3).to(dtype)
        assert (left @ right).dtype == dtype
        assert torch.equal((left @ right).double(), left.double() @ right.double())
    with pytest.raises(RuntimeError, match="dtype"):
        torch.mm(whole(5, 8), whole(8, 3).float())
    with pytest.raises(RuntimeError, match="dtype"):
        torch.addmm(torch.zeros(3), whole(5, 8), whole(8, 3))
    assert registered == []


def test_matrices_that_do_not_fit_are_refused_as_by_torch(registered: list[int]) -> None:
    with pytest.raises(RuntimeError, match="5x8 and 7x3"):
        torch.mm(whole(5, 8), whole(7, 3))
    with pytest.raises(RuntimeError, match="5x8 and 7x3"):
        torch.addmm(whole(3), whole(5, 8), whole(7, 3))


def test_a_processor_with_instructions_keeps_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(bfloat16_products, "register", calls.append)
    for has_them in (True, False):
        monkeypatch.setattr(bfloat16_products, "multiplies_bfloat16", lambda has=has_them: has)
        assert widen_products.__wrapped__() is not has_them
    assert len(calls) == 1


def test_an_old_torch_keeps_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bfloat16_products, "multiplies_bfloat16", lambda: False)
    monkeypatch.delattr(torch.library, "get_kernel")
    assert not widen_products.__wrapped__()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_in_bfloat16_asks_for_them(
    dtype: str, tiny_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(bfloat16_products, "widen_products", lambda: asked.append(True))
    load_backbone(str(tiny_model("llama")), dtype=dtype)
    assert len(asked) == (dtype == "bfloat16")
