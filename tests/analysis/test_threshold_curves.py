"""Curves over thresholds: exact if the sample is everything, else unbiased and repeatable."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nlora.analysis.threshold_curves import FACTORS, CurveSums, sample
from states import random_factors


def test_a_sample_of_everything_is_the_update() -> None:
    factors = [random_factors(6, 9, 2, seed=s) for s in (1, 2)]
    drawn = sample(factors, 10_000, seed=3)
    assert drawn.shape == (2, 54)
    for row, f in zip(drawn, factors, strict=True):
        np.testing.assert_allclose(np.sort(row), np.sort(f.update().abs().flatten().numpy()), rtol=1e-5)


@pytest.mark.parametrize(("out", "n_in", "entries"), [(50, 60, 100), (3, 400, 90), (400, 3, 90), (5, 5, 1)])
def test_the_sample_has_the_given_size_and_is_seeded_and_common(out: int, n_in: int, entries: int) -> None:
    f = random_factors(out, n_in, 2, seed=1)
    drawn = sample([f, f], entries, seed=0)
    assert 0.5 * entries <= drawn.shape[1] <= entries
    assert np.array_equal(drawn[0], drawn[1])
    assert np.array_equal(drawn, sample([f, f], entries, seed=0))


def test_curves_weight_modules_by_their_entries() -> None:
    thresholds = np.array([[0.5, 1.0, 2.0], [0.1, 0.2, 0.4]])
    sums = CurveSums(thresholds)
    modules = [[random_factors(4, 5, 2, seed=i + 10 * m) for i in range(2)] for m in range(2)]
    modules[1] = [random_factors(8, 10, 1, seed=i) for i in range(2)]
    for factors in modules:
        drawn = sample(factors, 10_000, seed=0)
        sums.add(sums.shares(drawn, [0, 1]), [0, 1], factors[0].entries)
    sizes = [torch.cat([m[i].update().abs().flatten() for m in modules]) for i in range(2)]
    large = [[sizes[i] > t for t in thresholds[i]] for i in range(2)]
    assert sums.density() == pytest.approx(
        np.array([[float(m.float().mean()) for m in row] for row in large])
    )
    expected = [float((a & b).float().mean()) for a, b in zip(*large, strict=True)]
    assert sums.collision()[0] == pytest.approx(expected)


def test_a_module_that_one_adapter_lacks_counts_for_the_others() -> None:
    sums = CurveSums(np.full((3, 1), 0.5))
    factors = [random_factors(4, 5, 2, seed=i) for i in range(3)]
    for present in ([0, 1, 2], [0, 2]):
        drawn = sample([factors[t] for t in present], 100, seed=0)
        sums.add(sums.shares(drawn, present), present, 20)
    large = [f.update().abs() > 0.5 for f in factors]
    assert sums.density()[:, 0] == pytest.approx([float(m.float().mean()) for m in large])
    assert sums.collision()[:, 0] == pytest.approx(
        [float((large[i] & large[j]).float().mean()) for i, j in ((0, 1), (0, 2), (1, 2))]
    )


def test_sampled_rates_are_near_the_true_ones() -> None:
    factors = [random_factors(300, 400, 4, seed=s) for s in (1, 2)]
    sums = CurveSums(np.array([[2.0], [2.0]]))
    for seed in range(20):
        sums.add(sums.shares(sample(factors, 3000, seed), [0, 1]), [0, 1], 1)
    large = [f.update().abs() > 2.0 for f in factors]
    assert sums.collision()[0, 0] == pytest.approx(float((large[0] & large[1]).float().mean()), abs=0.01)


def test_the_default_threshold_is_one_of_the_factors() -> None:
    from nlora.analysis.threshold import DEFAULT_FACTOR

    assert DEFAULT_FACTOR in FACTORS
    assert (FACTORS[0], FACTORS[-1]) == (1e-3, 10.0)
