"""The cheap mask drops the right share of entries, without bias, and the same ones in the backward pass."""

from __future__ import annotations

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from nlora.kernels.dropout import Dropout


@pytest.mark.parametrize("p", [0.05, 0.1, 0.5, 0.9])
def test_the_share_that_is_dropped_and_the_mean_that_stays(p: float) -> None:
    torch.manual_seed(3)
    entries = 400_000
    y = Dropout(p)(torch.ones(entries))
    share = float((y == 0).float().mean())
    deviation = (p * (1 - p) / entries) ** 0.5
    assert abs(share - p) < 5 * deviation
    values = y[y != 0].unique()
    assert len(values) == 1
    # Kept entries are scaled by the probability after rounding to 1/65536, so the expectation is exact.
    kept = 1 - round(p * 65536) / 65536
    assert float(values) == pytest.approx(1 / kept, rel=1e-6)


def test_neighbors_are_dropped_independently() -> None:
    """Four entries come from one random number; no two of them may be correlated."""
    torch.manual_seed(4)
    dropped = (Dropout(0.5)(torch.ones(200_000)) == 0).float().view(-1, 4)
    correlation = torch.corrcoef(dropped.T) - torch.eye(4)
    assert correlation.abs().max() < 5 / len(dropped) ** 0.5
    assert (dropped.mean(0) - 0.5).abs().max() < 5 * 0.5 / len(dropped) ** 0.5


def test_the_gradient_is_that_of_the_mask() -> None:
    torch.manual_seed(5)
    x = torch.randn(7, 13, requires_grad=True)  # 91 entries: the last number is only partly used
    y = Dropout(0.3)(x)
    g = torch.randn_like(y)
    y.backward(g)  # type: ignore[no-untyped-call]
    mask = (y != 0) / (1 - round(0.3 * 65536) / 65536)
    torch.testing.assert_close(x.grad, g * mask)
    torch.testing.assert_close(y, x * mask)


def test_the_seed_decides_and_checkpointing_draws_the_same_again() -> None:
    x = torch.randn(50, requires_grad=True)
    layer = Dropout(0.4)
    torch.manual_seed(6)
    y = layer(x)
    (plain,) = torch.autograd.grad(y.square().sum(), x)
    torch.manual_seed(6)
    again = checkpoint(layer, x, use_reentrant=False)
    (recomputed,) = torch.autograd.grad(again.square().sum(), x)
    assert torch.equal(y, again)
    assert torch.equal(plain, recomputed)
    assert not torch.equal(y, layer(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_precision_stays(dtype: torch.dtype) -> None:
    assert Dropout(0.1)(torch.ones(9, dtype=dtype)).dtype == dtype


def test_nothing_is_dropped_without_training_or_without_a_share() -> None:
    x = torch.randn(100)
    assert torch.equal(Dropout(0.5).eval()(x), x)
    assert torch.equal(Dropout(0.0)(x), x)
    assert torch.equal(Dropout(1.0)(x), torch.zeros(100))
