"""ELLA's penalty compared with full matrices, and what it stores."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nlora.methods.ella import DEFAULT_WEIGHT, Ella
from nlora.methods.registry import build
from nlora.models.lora_adapter import AdapterState, LoraAdapter
from tiny import LORA, load, spread


@pytest.fixture
def adapter(tiny_model: Callable[[str], Path]) -> LoraAdapter:
    attached = LoraAdapter.attach(load(tiny_model("llama")), LORA, seed=1)
    spread(attached)
    return attached


def random_state(adapter: LoraAdapter, seed: int) -> AdapterState:
    generator = torch.Generator().manual_seed(seed)
    state = adapter.state()
    for f in state.values():
        f.A.copy_(torch.randn(f.A.shape, generator=generator))
        f.B.copy_(torch.randn(f.B.shape, generator=generator))
    return state


def begun(adapter: LoraAdapter, earlier: list[AdapterState], **options: Any) -> Ella:
    method = build("ella", options)
    assert isinstance(method, Ella)
    method.begin_task(adapter, earlier)
    return method


def test_it_is_the_squared_overlap_with_the_sum_of_earlier_updates(adapter: LoraAdapter) -> None:
    earlier = [random_state(adapter, 4), random_state(adapter, 5)]
    wanted = torch.zeros(())
    for name, f in adapter.factors().items():
        S = earlier[0][name].update() + earlier[1][name].update()
        wanted = wanted + (f.update() * S).pow(2).sum()
    got = begun(adapter, earlier, weight=0.5).penalty(adapter)
    assert got is not None
    torch.testing.assert_close(got, 0.5 * wanted)
    parameters = [p for f in adapter.factors().values() for p in (f.A, f.B)]
    ours, plain = torch.autograd.grad(got, parameters), torch.autograd.grad(0.5 * wanted, parameters)
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b)


def test_untouched_entries_are_free(adapter: LoraAdapter) -> None:
    """Earlier updates on the even rows, the new one on the odd rows: neither a penalty nor a gradient."""
    earlier = [random_state(adapter, 4)]
    with torch.no_grad():
        for name, f in adapter.factors().items():
            earlier[0][name].B[1::2] = 0
            f.B[::2] = 0
    got = begun(adapter, earlier).penalty(adapter)
    assert got is not None
    assert got == 0
    got.backward()
    for f in adapter.factors().values():
        assert f.A.grad is not None
        assert f.B.grad is not None
        assert not f.A.grad.any()
        assert not f.B.grad.any()


def test_memory_does_not_grow_with_the_tasks(adapter: LoraAdapter) -> None:
    entries = sum(f.entries for f in adapter.factors().values())
    for tasks in (1, 5):
        method = begun(adapter, [random_state(adapter, seed) for seed in range(tasks)])
        assert sum(square.numel() for square in method._squares.values()) == entries
        assert all(
            square.untyped_storage().nbytes() == 4 * square.numel() for square in method._squares.values()
        )


def test_a_first_task_and_weight_zero_keep_nothing_and_cost_nothing(adapter: LoraAdapter) -> None:
    for earlier, weight in (([], DEFAULT_WEIGHT), ([random_state(adapter, 4)], 0.0)):
        method = begun(adapter, earlier, weight=weight)
        assert not method._squares
        assert method.penalty(adapter) is None


def test_a_stage_forgets_the_sum_of_the_stage_before(adapter: LoraAdapter) -> None:
    """One method object is used for all stages of a run."""
    method = begun(adapter, [random_state(adapter, 4), random_state(adapter, 5)])
    method.begin_task(adapter, [random_state(adapter, 4)])
    again = begun(adapter, [random_state(adapter, 4)])
    assert torch.equal(method.penalty(adapter), again.penalty(adapter))  # type: ignore[arg-type]
    method.begin_task(adapter, [])
    assert method.penalty(adapter) is None


def test_opposite_updates_cancel_as_in_the_paper(adapter: LoraAdapter) -> None:
    earlier = [random_state(adapter, 4), random_state(adapter, 4)]
    for f in earlier[1].values():
        f.B.neg_()
    got = begun(adapter, earlier).penalty(adapter)
    assert got is not None
    assert got.item() == pytest.approx(0, abs=1e-6)
