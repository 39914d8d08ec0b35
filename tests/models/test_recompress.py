"""Smaller ranks, against NumPy's SVD of the whole matrix."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nlora.models.lora_factors import LoraFactors
from nlora.models.recompress import recompress, reduced_svd


def factors(out: int, n_in: int, r: int, scaling: float = 2.0) -> LoraFactors:
    draw = torch.Generator().manual_seed(out + 10 * n_in + 100 * r)
    return LoraFactors(torch.randn(r, n_in, generator=draw), torch.randn(out, r, generator=draw), scaling)


SHAPES = [(12, 20, 4), (20, 12, 4), (6, 30, 6), (5, 4, 7)]  # the last: more rank than there is room for


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dense", [False, True])
def test_singular_values_are_those_of_the_whole_update(shape: tuple[int, int, int], dense: bool) -> None:
    f = factors(*shape)
    whole = f.update().double().numpy()
    U, S, Vt = reduced_svd(torch.from_numpy(whole) if dense else f)
    expected = np.linalg.svd(whole, compute_uv=False)
    np.testing.assert_allclose(S.numpy()[: len(expected)], expected[: len(S)], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose((U * S @ Vt).numpy(), whole, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dense", [False, True])
def test_a_smaller_rank_is_the_best_there_is_and_its_loss_is_measured(
    shape: tuple[int, int, int], dense: bool
) -> None:
    f = factors(*shape)
    whole = f.update().numpy()
    found = recompress(f.update() if dense else f, 2)
    u, s, vt = np.linalg.svd(whole.astype(np.float64))
    best = (u[:, :2] * s[:2]) @ vt[:2]
    np.testing.assert_allclose(found.factors.update().numpy(), best, atol=1e-4)
    assert found.factors.A.shape == (2, shape[1])
    assert found.factors.scaling == 1
    assert found.lost == pytest.approx(((whole - best) ** 2).sum(), rel=1e-4)
    assert found.total == pytest.approx((whole**2).sum(), rel=1e-5)


def test_the_whole_rank_loses_nothing() -> None:
    f = factors(12, 20, 4)
    found = recompress(f, 9)
    assert found.factors.A.shape == (4, 20)
    assert found.lost == 0
    torch.testing.assert_close(found.factors.update(), f.update())


def test_no_update_stays_none() -> None:
    f = LoraFactors(torch.ones(3, 5), torch.zeros(4, 3), 1.0)
    found = recompress(f, 1)
    assert (found.lost, found.total) == (0, 0)
    assert not found.factors.update().any()
