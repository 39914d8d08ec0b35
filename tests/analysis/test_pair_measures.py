"""Cosines, orthogonality and angles against whole matrices and known geometry."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from nlora.analysis.pair_measures import pair_measures, pairs_of, principal_angles
from nlora.models.lora_factors import LoraFactors
from states import of_matrix, random_factors


def test_pairs_come_row_by_row() -> None:
    first, second = pairs_of(4)
    assert list(zip(first, second, strict=True)) == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    assert len(pairs_of(1)[0]) == 0


@pytest.mark.parametrize(("out", "n_in"), [(12, 9), (5, 30)])
def test_products_of_factors_equal_those_of_updates(out: int, n_in: int) -> None:
    factors = [random_factors(out, n_in, r, seed=r, scaling=s) for r, s in ((2, 0.5), (4, 2.0), (1, -3.0))]
    made = pair_measures(factors)
    for p, (i, j) in enumerate([(0, 1), (0, 2), (1, 2)]):
        f, g = factors[i], factors[j]
        a, b = f.update().double(), g.update().double()
        assert made.inner[p] == pytest.approx(float((a * b).sum()), rel=1e-5, abs=1e-5)
        assert made.product[p] == pytest.approx(float((a.T @ b).square().sum()), rel=1e-5)
        assert made.orthogonality[p] == pytest.approx(float((f.A.double() @ g.A.double().T).square().sum()))
        cosines = [
            torch.linalg.svdvals(torch.linalg.qr(x)[0].T @ torch.linalg.qr(y)[0])[0]
            for x, y in ((f.A.double().T, g.A.double().T), (f.B.double(), g.B.double()))
        ]
        assert made.row_angle[p] == pytest.approx(math.degrees(math.acos(min(1, cosines[0]))), abs=1e-4)
        assert made.column_angle[p] == pytest.approx(math.degrees(math.acos(min(1, cosines[1]))), abs=1e-4)


def outer(column: list[float], row: list[float]) -> LoraFactors:
    return LoraFactors(torch.tensor([row]), torch.tensor(column)[:, None], 1.0)


def test_angles_in_the_plane() -> None:
    f, g = outer([1.0, 0.0], [1.0, 0.0]), outer([1.0, 1.0], [math.sqrt(3), 1.0])
    rows, columns = principal_angles(f, g)
    assert rows == pytest.approx([30.0])
    assert columns == pytest.approx([45.0])


def test_all_principal_angles_smallest_first() -> None:
    # Planes in four dimensions, turned against each other by 20 and by 70 degrees.
    turned = torch.zeros(2, 4)
    for i, angle in enumerate((70, 20)):
        turned[i, i], turned[i, i + 2] = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    f, g = LoraFactors(torch.eye(2, 4), torch.eye(3, 2), 1.0), LoraFactors(turned, torch.eye(3, 2), 1.0)
    rows, columns = principal_angles(f, g)
    assert rows == pytest.approx([20.0, 70.0], abs=1e-4)
    assert columns == pytest.approx([0.0, 0.0], abs=1e-4)


def test_equal_and_disjoint_updates() -> None:
    f = random_factors(8, 6, 2, seed=1)
    same = pair_measures([f, f])
    assert same.row_angle[0] == pytest.approx(0.0, abs=1e-5)
    assert same.inner[0] == pytest.approx(float(f.update().square().sum()), rel=1e-5)
    left, right = torch.zeros(4, 4), torch.zeros(4, 4)
    left[:2, :2] = torch.eye(2)
    right[2:, 2:] = torch.eye(2)
    apart = pair_measures([of_matrix(left), of_matrix(right)])
    assert (apart.inner[0], apart.product[0], apart.row_angle[0], apart.column_angle[0]) == (0, 0, 90, 90)


def test_a_zero_update_has_no_angle() -> None:
    f = random_factors(8, 6, 2, seed=1)
    zero = LoraFactors(f.A, torch.zeros_like(f.B), 1.0)
    made = pair_measures([f, zero, f])
    assert np.isnan(made.row_angle).tolist() == [True, False, True]
    assert np.isnan(made.column_angle).tolist() == [True, False, True]
    assert made.inner[0] == made.product[0] == 0.0
    assert len(principal_angles(f, zero)[0]) == 0


def test_the_angle_does_not_depend_on_how_the_update_is_split() -> None:
    """O-LoRA's orthogonality does: another pair of factors of the same update gives another number."""
    f, g = random_factors(8, 6, 2, seed=1), random_factors(8, 6, 2, seed=2)
    mixed = torch.tensor([[2.0, 1.0], [0.0, 0.5]])
    other = LoraFactors(mixed @ f.A, f.B @ torch.linalg.inv(mixed), f.scaling)
    one, two = pair_measures([f, g]), pair_measures([other, g])
    assert one.row_angle == pytest.approx(two.row_angle, abs=1e-4)
    assert one.product == pytest.approx(two.product, rel=1e-4)
    assert one.orthogonality != pytest.approx(two.orthogonality, rel=1e-2)
