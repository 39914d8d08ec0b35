"""Drawn updates: sums in any order, merged or beside the weights, taken out again, and approximated."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers.pytorch_utils import Conv1D

from nlora.models.lora_factors import AdapterState, LoraFactors, stack
from nlora.models.merged_updates import MergedUpdates
from nlora.models.recompress import recompress, reduced_svd
from nlora.models.unmerged_updates import UnmergedUpdates

SHAPES = {"a": (5, 3), "b": (4, 6), "c": (2, 2)}
"""(out, in) of the layers."""


def factors(out: int, n_in: int, r: int, seed: int, size: float = 1.0) -> LoraFactors:
    draw = torch.Generator().manual_seed(seed)
    A, B = torch.randn(r, n_in, generator=draw), torch.randn(out, r, generator=draw)
    return LoraFactors(A, B * size, 0.5)


@st.composite
def states(draw: st.DrawFn) -> AdapterState:
    """An adapter of some of the layers, each with a rank of its own, which may be above the layer's."""
    names = draw(st.lists(st.sampled_from(list(SHAPES)), unique=True, min_size=1))
    return {n: factors(*SHAPES[n], draw(st.integers(1, 7)), draw(st.integers(0, 99))) for n in names}


STATES = st.lists(states(), max_size=4)


def backbone(dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    model = nn.ModuleDict({"a": nn.Linear(3, 5), "b": Conv1D(4, 6), "c": nn.Linear(2, 2, bias=False)})
    return model.to(dtype).requires_grad_(False)


def outputs(model: Any) -> dict[str, torch.Tensor]:
    return {n: model[n](torch.eye(n_in, dtype=model[n].weight.dtype)) for n, (_, n_in) in SHAPES.items()}


def close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=2e-5, rtol=1e-5)


@given(STATES, st.randoms(use_true_random=False))
def test_updates_in_any_order_merged_or_not_add_what_each_adds(
    given: list[AdapterState], random: Any
) -> None:
    expected = outputs(backbone(torch.float64))
    for state in given:
        for name, f in state.items():
            expected[name] += (f.scaling * f.B.double() @ f.A.double()).T
    shuffled = random.sample(given, len(given))
    for kind in (MergedUpdates, UnmergedUpdates):
        model = backbone()
        kind(model, list(SHAPES)).activate(shuffled)
        close(outputs(model), {name: tensor.float() for name, tensor in expected.items()})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", [MergedUpdates, UnmergedUpdates])
@given(steps=st.lists(STATES, min_size=1, max_size=4))
def test_only_the_last_activation_counts_and_none_leaves_a_trace(
    kind: Any, dtype: torch.dtype, steps: list[list[AdapterState]]
) -> None:
    model, fresh, untouched = backbone(dtype), backbone(dtype), backbone(dtype)
    updates = kind(model, list(SHAPES))
    for step in steps:
        updates.activate(step)
    kind(fresh, list(SHAPES)).activate(steps[-1])
    assert all(torch.equal(found, outputs(fresh)[name]) for name, found in outputs(model).items())
    updates.deactivate()
    assert all(torch.equal(w, untouched.state_dict()[name]) for name, w in model.state_dict().items())
    assert all(torch.equal(found, outputs(untouched)[name]) for name, found in outputs(model).items())


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(0, 99))
def test_a_stack_is_the_sum(ranks: list[int], seed: int) -> None:
    parts = [factors(4, 6, r, seed + i) for i, r in enumerate(ranks)]
    joint = stack(parts)
    assert joint.A.shape == (sum(ranks), 6)
    torch.testing.assert_close(joint.update(), sum(f.update() for f in parts), atol=1e-5, rtol=1e-5)


SIZES = st.tuples(st.integers(1, 8), st.integers(1, 8), st.integers(1, 10))


@given(
    SIZES,
    st.integers(1, 9),
    st.integers(0, 999),
    st.sampled_from([0.0, 1e-12, 1e-3, 1.0, 1e6]),
    st.booleans(),
)
def test_a_smaller_rank_loses_the_tail_of_the_singular_values(
    sizes: tuple[int, int, int], rank: int, seed: int, size: float, dense: bool
) -> None:
    f = factors(*sizes, seed, size)
    whole = f.scaling * f.B.double() @ f.A.double()
    found = recompress(whole if dense else f, rank)
    singular = np.linalg.svd(whole.numpy(), compute_uv=False)
    total = float((singular**2).sum())
    assert found.total == pytest.approx(total, rel=1e-9, abs=1e-30)
    assert found.lost == pytest.approx(float((singular[rank:] ** 2).sum()), rel=1e-6, abs=1e-12 * total)
    # What is lost is the distance to the approximation, which is stored in float32.
    small = found.factors
    distance = float((small.B.double() @ small.A.double() - whole).square().sum())
    assert distance == pytest.approx(found.lost, rel=1e-4, abs=1e-11 * total)
    assert len(small.A) == small.B.shape[1] <= rank
    assert small.scaling == 1


@given(SIZES, st.integers(0, 999))
def test_a_larger_rank_never_loses_more_and_the_whole_loses_nothing(
    sizes: tuple[int, int, int], seed: int
) -> None:
    f = factors(*sizes, seed)
    lost = [recompress(f, rank).lost for rank in range(1, 11)]
    assert lost == sorted(lost, reverse=True)
    assert lost[min(sizes) - 1 :] == pytest.approx(
        [0.0] * (11 - min(sizes)), abs=1e-20 * recompress(f, 1).total + 1e-25
    )
    U, S, Vt = reduced_svd(f)
    assert (S.diff() <= 0).all()
    torch.testing.assert_close(U.T @ U, torch.eye(len(S), dtype=torch.float64))
    torch.testing.assert_close(Vt @ Vt.T, torch.eye(len(S), dtype=torch.float64))
