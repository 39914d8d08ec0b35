"""O-LoRA's penalty compared with loops over rows, what it stores from stage to stage, and its first step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nlora.errors import InputErrors
from nlora.methods.registry import build
from nlora.models.lora_adapter import AdapterState, LoraAdapter
from nlora.models.lora_factors import with_all_modules
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


def penalty(adapter: LoraAdapter, earlier: list[AdapterState], **options: Any) -> torch.Tensor:
    method = build("olora", options)
    method.begin_task(adapter, earlier)
    value = method.penalty(adapter)
    assert value is not None
    return value


@pytest.mark.parametrize(("norm", "power"), [("l1", 1), ("l2_squared", 2)])
def test_it_is_the_sum_over_modules_tasks_and_pairs_of_rows(
    adapter: LoraAdapter, norm: str, power: int
) -> None:
    earlier = [random_state(adapter, 4), random_state(adapter, 5)]
    wanted = 0.0
    for name, f in adapter.factors().items():
        for state in earlier:
            for old in state[name].A:
                for new in f.A:
                    wanted += abs((old @ new).item()) ** power
    got = penalty(adapter, earlier, weight=0.25, norm=norm)
    assert got.item() == pytest.approx(0.25 * wanted, rel=1e-5)


def test_neither_scaling_nor_b_enters(adapter: LoraAdapter) -> None:
    earlier = [random_state(adapter, 4)]
    before = penalty(adapter, earlier)
    spread(adapter, seed=9)
    for f in earlier[0].values():
        f.B.mul_(7)
    assert torch.equal(penalty(adapter, earlier), before)


def test_the_norms_are_added_unsquared_with_their_own_weight(adapter: LoraAdapter) -> None:
    earlier = [random_state(adapter, 4)]
    norms = sum(f.A.norm().item() + f.B.norm().item() for f in adapter.factors().values())
    both = penalty(adapter, earlier, norm_weight=0.1).item()
    assert both == pytest.approx(penalty(adapter, earlier).item() + 0.1 * norms, rel=1e-5)
    assert penalty(adapter, [], norm_weight=0.1).item() == pytest.approx(0.1 * norms, rel=1e-5)
    assert penalty(adapter, earlier, weight=0, norm_weight=0.1).item() == pytest.approx(0.1 * norms, rel=1e-5)


def test_a_first_task_without_norms_has_no_penalty(adapter: LoraAdapter) -> None:
    method = build("olora", {})
    method.begin_task(adapter, [])
    assert method.penalty(adapter) is None


def test_a_stage_forgets_what_the_stage_before_compared_with(adapter: LoraAdapter) -> None:
    """One method object is used for all stages of a run."""
    method = build("olora", {})
    method.begin_task(adapter, [random_state(adapter, 4), random_state(adapter, 5)])
    method.begin_task(adapter, [random_state(adapter, 4)])
    assert torch.equal(method.penalty(adapter), penalty(adapter, [random_state(adapter, 4)]))  # type: ignore[arg-type]
    method.begin_task(adapter, [])
    assert method.penalty(adapter) is None


def test_at_the_first_step_b_is_zero_and_no_gradient_is_nan(tiny_model: Callable[[str], Path]) -> None:
    fresh = LoraAdapter.attach(load(tiny_model("llama")), LORA, seed=1)
    penalty(fresh, [random_state(fresh, 4)], norm_weight=0.1).backward()
    for f in fresh.factors().values():
        assert f.A.grad is not None
        assert f.B.grad is not None
        assert torch.isfinite(f.A.grad).all()
        assert f.A.grad.any()
        assert not f.B.grad.any()
        assert torch.isfinite(f.B.grad).all()


def test_a_step_along_the_gradient_makes_the_rows_more_orthogonal(adapter: LoraAdapter) -> None:
    earlier = [random_state(adapter, 4)]
    before = penalty(adapter, earlier)
    before.backward()
    with torch.no_grad():
        for f in adapter.factors().values():
            assert f.A.grad is not None
            f.A.sub_(1e-4 * f.A.grad)
    assert penalty(adapter, earlier) < before


def test_a_module_that_an_earlier_adapter_lacks_has_no_part_in_the_penalty(adapter: LoraAdapter) -> None:
    first, second = random_state(adapter, 4), random_state(adapter, 5)
    name = list(second)[-1]
    lacking = {other: f for other, f in second.items() if other != name}
    filled = with_all_modules(lacking, adapter.factors())
    f = adapter.factors()[name]
    part = 0.5 * (second[name].A @ f.A.mT).abs().sum()
    whole = penalty(adapter, [first, second], weight=0.5)
    torch.testing.assert_close(penalty(adapter, [first, filled], weight=0.5), whole - part)


def test_wrong_options_are_named() -> None:
    with pytest.raises(InputErrors) as caught:
        build("olora", {"weight": -1, "norm": "l2", "norm_weight": float("inf")})
    found = {p.where: p.what for p in caught.value.problems}
    assert found["method.weight"] == "must be a number >= 0, not -1"
    assert found["method.norm"] == "must be l1 or l2_squared, not 'l2'"
    assert found["method.norm_weight"].startswith("must be a finite number >= 0")
