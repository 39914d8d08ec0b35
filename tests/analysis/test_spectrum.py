"""Spectra from r×r products equal those of the whole updates."""

from __future__ import annotations

import math

import pytest
import torch

from nlora.analysis.spectrum import effective_rank, nuclear_norm, reduced_svds, stable_rank
from nlora.models.lora_factors import LoraFactors, stack
from states import of_matrix, random_factors


@pytest.mark.parametrize(("out", "n_in", "r"), [(12, 7, 3), (5, 20, 4), (3, 4, 6), (9, 9, 1)])
def test_the_svd_is_that_of_the_update(out: int, n_in: int, r: int) -> None:
    f = random_factors(out, n_in, r, seed=1, scaling=-0.5)
    spectra = reduced_svds([f])
    expected = torch.linalg.svdvals(f.update().double())
    torch.testing.assert_close(spectra.S[0], expected[: spectra.S.shape[1]], rtol=1e-5, atol=1e-6)
    whole = spectra.U[0] @ spectra.S[0].diag() @ spectra.V[0].mT
    torch.testing.assert_close(whole, f.update().double(), rtol=1e-5, atol=1e-5)


def test_updates_of_different_ranks_are_decomposed_together() -> None:
    factors = [random_factors(10, 8, r, seed=r) for r in (1, 4, 2)]
    spectra = reduced_svds(factors)
    for f, S, U, V in zip(factors, spectra.S, spectra.U, spectra.V, strict=True):
        torch.testing.assert_close(S[: f.A.shape[0]], reduced_svds([f]).S[0])
        assert (S > 1e-6).sum() == f.A.shape[0]
        # What has no singular value is no direction: a column of zeros.
        kept = torch.arange(4) < f.A.shape[0]
        for Q in (U, V):
            torch.testing.assert_close(Q.mT @ Q, kept.double().diag())


def test_rounding_is_not_a_direction() -> None:
    f = random_factors(30, 20, 2, seed=3)
    g = random_factors(30, 20, 1, seed=4)
    again = LoraFactors(f.A, f.B, -f.scaling)
    spectra = reduced_svds([stack([f, g, again])])  # f + g - f
    assert int((spectra.V[0].square().sum(0) > 0).sum()) == 1


def test_ranks_in_closed_form() -> None:
    # Four equal singular values: every notion of rank is 4.
    S = reduced_svds([of_matrix(torch.eye(4) * 3)]).S
    assert nuclear_norm(S).item() == pytest.approx(12)
    assert stable_rank(S).item() == pytest.approx(4)
    assert effective_rank(S).item() == pytest.approx(4)
    # 3, 1: stable 10/9; entropy of (3/4, 1/4).
    S = reduced_svds([of_matrix(torch.diag(torch.tensor([1.0, -3.0])))]).S
    assert nuclear_norm(S).item() == pytest.approx(4)
    assert stable_rank(S).item() == pytest.approx(10 / 9)
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert effective_rank(S).item() == pytest.approx(math.exp(entropy))


def test_a_zero_update_has_rank_zero() -> None:
    f = random_factors(6, 5, 2, seed=0)
    S = reduced_svds([LoraFactors(f.A, torch.zeros_like(f.B), 1.0)]).S
    assert [float(m(S)) for m in (nuclear_norm, stable_rank, effective_rank)] == [0.0, 0.0, 0.0]
