"""EWC's penalty compared with its formula, and what it remembers from task to task."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from nlora.data.task import TokenizedExample
from nlora.errors import RunError
from nlora.methods.registry import build
from nlora.models.lora_adapter import LoraAdapter
from tiny import LORA, load, spread

EXAMPLES = [TokenizedExample((5, 9, 17, i), (33 + i, 2)) for i in range(6)]


@pytest.fixture
def adapter(tiny_model: Callable[[str], Path]) -> LoraAdapter:
    attached = LoraAdapter.attach(load(tiny_model("llama")), LORA, seed=1)
    spread(attached)
    return attached


def test_it_is_half_the_weighted_square_of_the_update(adapter: LoraAdapter) -> None:
    generator = torch.Generator().manual_seed(4)
    fisher = {name: torch.rand(f.shape, generator=generator) for name, f in adapter.factors().items()}
    method = build("ewc", {"weight": 3.0})
    method.restore(fisher)
    method.begin_task(adapter, [adapter.state()])
    expected = 1.5 * sum((fisher[n] * f.update() ** 2).sum() for n, f in adapter.factors().items())
    penalty = method.penalty(adapter)
    assert penalty is not None
    torch.testing.assert_close(penalty, expected)
    parameters = [p for f in adapter.factors().values() for p in (f.A, f.B)]
    ours, plain = torch.autograd.grad(penalty, parameters), torch.autograd.grad(expected, parameters)
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b)


def test_the_tasks_information_adds_up(adapter: LoraAdapter) -> None:
    model, names = adapter.model.get_base_model(), list(adapter.factors())
    method = build("ewc", {"samples": 100})
    one = method.end_task(model, names, EXAMPLES[:3], 0)
    other = method.end_task(model, names, EXAMPLES[3:], 0)
    method.restore(one)
    both = method.end_task(model, names, EXAMPLES[3:], 0)
    for name in names:
        torch.testing.assert_close(both[name], one[name] + other[name])
        assert one[name].min() >= 0
        assert one[name].any()


def test_no_more_than_the_given_number_of_samples_is_used(adapter: LoraAdapter) -> None:
    model, names = adapter.model.get_base_model(), list(adapter.factors())
    two = build("ewc", {"samples": 2}).end_task(model, names, EXAMPLES, 0)
    same = build("ewc", {"samples": 100}).end_task(model, names, [EXAMPLES[0], EXAMPLES[3]], 0)
    assert all(torch.equal(two[name], same[name]) for name in names)


def test_no_penalty_at_the_first_stage_and_none_for_weight_zero(adapter: LoraAdapter) -> None:
    first = build("ewc", {})
    first.begin_task(adapter, [])
    assert first.penalty(adapter) is None
    zero = build("ewc", {"weight": 0})
    zero.begin_task(adapter, [adapter.state()])
    assert zero.penalty(adapter) is None


def test_a_task_without_the_penalty_is_remembered_with_those_before(adapter: LoraAdapter) -> None:
    model, names = adapter.model.get_base_model(), list(adapter.factors())
    found = {}
    for weight in (0.0, 3.0):
        method = build("ewc", {"weight": weight})
        method.restore({names[0]: torch.ones(adapter.factors()[names[0]].shape)})
        found[weight] = method.end_task(model, names, EXAMPLES, 0)
    assert found[0.0].keys() == found[3.0].keys() == set(names)
    assert all(torch.equal(found[0.0][name], found[3.0][name]) for name in names)


def test_missing_fisher_information_is_an_error(adapter: LoraAdapter) -> None:
    with pytest.raises(RunError, match=r"no Fisher information for model\.layers\.0"):
        build("ewc", {}).begin_task(adapter, [adapter.state()])
