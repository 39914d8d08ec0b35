"""Merges of drawn updates, against what their papers say, entry by entry."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from nlora.kernels.largest_magnitude import magmax
from nlora.models.lora_factors import AdapterState, LoraFactors
from nlora.runs.export.combine import CombinedUpdate, dense_update, slerp
from nlora.runs.export.options import MERGES, PRUNING_MERGES

OUT, IN = 3, 4
ENTRY = st.sampled_from([-2.0, -1.0, -0.5, 0.0, 0.25, 1.0, 3.0])
MATRIX = st.lists(ENTRY, min_size=OUT * IN, max_size=OUT * IN).map(lambda v: torch.tensor(v).view(OUT, IN))
MATRICES = st.lists(MATRIX, min_size=1, max_size=4)


def combined(matrices: list[Tensor], how: str, density: float = 1.0, seed: int = 0) -> Tensor:
    """The merge of whole updates, each as the exact factors B = ΔW and A = I."""
    states: list[AdapterState] = [{"q": LoraFactors(torch.eye(IN), matrix, 1.0)} for matrix in matrices]
    return dense_update(CombinedUpdate(states, how, density, seed)["q"])


def columns(matrices: list[Tensor]) -> list[list[float]]:
    """The values of all updates at each entry."""
    return [list(values) for values in zip(*(m.flatten().tolist() for m in matrices), strict=True)]


def assert_entries(found: Tensor, expected: list[float]) -> None:
    torch.testing.assert_close(found.flatten(), torch.tensor(expected))


@given(MATRICES, st.randoms(use_true_random=False))
def test_sums_magmax_and_ties_do_not_depend_on_the_order(matrices: list[Tensor], random: Any) -> None:
    shuffled = random.sample(matrices, len(matrices))
    for how in ("sum", "ties", "magnitude_prune"):
        torch.testing.assert_close(combined(matrices, how), combined(shuffled, how))
    # Of a value and its opposite, magmax takes the first.
    torch.testing.assert_close(magmax(matrices).abs(), magmax(shuffled).abs())


@given(MATRICES)
def test_each_merge_entry_by_entry(matrices: list[Tensor]) -> None:
    values = columns(matrices)
    assert_entries(combined(matrices, "sum"), [sum(v) for v in values])
    assert_entries(combined(matrices, "magmax"), [max(v, key=abs) for v in values])
    for how in ("magnitude_prune", "dare_linear"):  # nothing is pruned at density 1
        assert_entries(combined(matrices, how), [sum(v) for v in values])

    def elected(v: list[float]) -> float:
        """TIES: the sign of the sum, and the mean of the values that have it (arXiv 2306.01708)."""
        sign = 1 if sum(v) >= 0 else -1
        same = [one for one in v if one * sign > 0]
        return sum(same) / len(same) if same else 0.0

    for how in ("ties", "dare_ties"):
        assert_entries(combined(matrices, how), [elected(v) for v in values])


@given(MATRIX, st.sampled_from([0.25, 0.5, 0.75, 1.0]))
def test_pruning_one_update_keeps_its_largest_entries(matrix: Tensor, density: float) -> None:
    found = combined([matrix], "magnitude_prune", density)
    kept = found != 0
    assert int(kept.sum()) <= int(density * matrix.numel())
    assert torch.equal(found[kept], matrix[kept])
    dropped = matrix[~kept].abs().max() if (~kept).any() else torch.tensor(0.0)
    assert not kept.any() or matrix[kept].abs().min() >= dropped


@given(MATRIX, st.sampled_from([0.25, 0.5, 0.75, 1.0]), st.integers(0, 9))
def test_dare_drops_entries_and_rescales_the_others(matrix: Tensor, density: float, seed: int) -> None:
    found = combined([matrix], "dare_linear", density, seed)
    kept = found != 0
    torch.testing.assert_close(found[kept], matrix[kept] / density)
    assert torch.equal(found, combined([matrix], "dare_linear", density, seed))


@given(
    MATRICES,
    st.sampled_from(MERGES),
    st.sampled_from([0.3, 1.0]),
    st.sampled_from([1e-30, 1e-12, 2.0, 2.0**60]),
)
def test_a_merge_scales_with_its_updates(
    matrices: list[Tensor], how: str, density: float, size: float
) -> None:
    found = combined([size * matrix for matrix in matrices], how, density)
    torch.testing.assert_close(found / size, combined(matrices, how, density), atol=1e-4, rtol=1e-4)
    assert found.isfinite().all()


@given(MATRIX, MATRIX)
def test_slerp_goes_half_the_angle_and_keeps_a_common_length(a: Tensor, b: Tensor) -> None:
    found = slerp([a, b])
    if not (a.any() and b.any()):
        torch.testing.assert_close(found, (a + b) / 2)
        return
    a, b = (m.double() / m.double().norm() for m in (a, b))
    cosine = float((a * b).sum())
    found = slerp([a, b])
    if abs(cosine) > 0.9995:  # the same or the opposite direction
        torch.testing.assert_close(found, (a + b) / 2)
        return
    assert float(found.norm()) == pytest.approx(1, rel=1e-5)
    assert float((found * a).sum()) == pytest.approx(float((found * b).sum()), abs=1e-5)
    assert 2 * float((found * a).sum()) ** 2 - 1 == pytest.approx(
        cosine, abs=1e-4
    )  # cos 2x of half the angle x
    torch.testing.assert_close(slerp([b, a]), found, atol=1e-6, rtol=1e-5)


@given(MATRIX, st.integers(1, 4), st.sampled_from(["magmax", "slerp", "ties"]))
def test_an_update_merged_with_itself_is_itself(matrix: Tensor, times: int, how: str) -> None:
    torch.testing.assert_close(combined([matrix] * times, how), matrix)


@given(MATRICES, st.sampled_from(PRUNING_MERGES), st.sampled_from([0.1, 0.5]))
def test_what_no_update_has_no_merge_makes_up(matrices: list[Tensor], how: str, density: float) -> None:
    empty = torch.stack(matrices).eq(0).all(0)
    assert not combined(matrices, how, density)[empty].any()
    signs = torch.stack(matrices).sign()
    merged = combined(matrices, how, density).sign()
    assert ((merged == 0) | (signs == merged).any(0)).all()
