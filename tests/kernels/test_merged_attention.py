"""Two parts of the keys, merged, are attention to all of them: the same numbers and the same gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nlora.kernels import merged_attention as module
from nlora.kernels.merged_attention import merged_attention


@pytest.fixture(params=["kernel", "plain"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to compute a part; a GPU takes the plain one."""
    if request.param == "plain":
        monkeypatch.setattr(module, "_has_kernel", lambda q, v: False)
    return str(request.param)


def states(
    dtype: torch.dtype = torch.float64, value_width: int = 4, device: str = "cpu", size: float = 1.0
) -> tuple[list[Tensor], Tensor]:
    """q, k, v, shared_k and shared_v of three rows with two heads, and a causal mask for two queries per token."""
    draw = torch.Generator().manual_seed(2)
    shapes = [(3, 2, 10, 4), (3, 2, 5, 4), (3, 2, 5, value_width), (2, 7, 4), (2, 7, value_width)]
    tensors = [size * torch.randn(shape, generator=draw, dtype=torch.float64) for shape in shapes]
    mask = torch.full((5, 5), float("-inf"), dtype=dtype, device=device).triu_(1).repeat(2, 1)
    return [t.to(device, dtype).requires_grad_() for t in tensors], mask


def expected(parts: list[Tensor], mask: Tensor, scale: float) -> Tensor:
    """By the definition, with the shared keys copied for each row."""
    q, k, v, shared_k, shared_v = parts
    keys = torch.cat([shared_k.expand(3, -1, -1, -1), k], dim=2)
    values = torch.cat([shared_v.expand(3, -1, -1, -1), v], dim=2)
    scores = scale * q @ keys.mT + torch.cat([mask.new_zeros(10, 7), mask], dim=1)
    return scores.softmax(-1) @ values


@pytest.mark.parametrize("value_width", [4, 6])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_the_numbers_and_gradients_are_those_of_all_keys(
    way: str, scale: float | None, value_width: int
) -> None:
    parts, mask = states(value_width=value_width)
    found, right = merged_attention(*parts, mask, scale), expected(parts, mask, scale or 0.5)
    torch.testing.assert_close(found, right, rtol=1e-12, atol=1e-12)
    g = torch.randn(found.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    gradients = torch.autograd.grad(found, parts, g), torch.autograd.grad(right, parts, g)
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


def test_large_scores_do_not_overflow(way: str) -> None:
    parts, mask = states(torch.float32, size=40.0)  # scores of thousands
    found = merged_attention(*parts, mask)
    torch.testing.assert_close(found, expected(parts, mask, 0.5), rtol=1e-3, atol=1e-2)
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(found.sum(), parts))


def test_the_dtype_stays(way: str) -> None:
    parts, mask = states(torch.bfloat16)
    found = merged_attention(*parts, mask)
    assert found.dtype == torch.bfloat16
    exact = merged_attention(*states()[0], states()[1])
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=0.05)
    assert {g.dtype for g in torch.autograd.grad(found.sum(), parts)} == {torch.bfloat16}


def test_nothing_is_read_from_the_device_and_nothing_is_made_on_another() -> None:
    """Tensors without numbers: reading one raises, and so does meeting a tensor of another device."""
    parts, mask = states(device="meta")
    found = merged_attention(*parts, mask)
    found.sum().backward()  # type: ignore[no-untyped-call]
    assert {t.grad.device.type for t in parts if t.grad is not None} == {"meta"}
    assert found.device.type == "meta"
