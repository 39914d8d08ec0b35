"""What every method must keep, whichever it is: put through for each file of the folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from nlora.config.schema import LoraOptions
from nlora.data.task import Example, Task, TokenizedExample
from nlora.methods.base import Method
from nlora.methods.registry import build, describe, method_names
from nlora.models.lora_adapter import AdapterState, LoraAdapter, target_modules

LORA = LoraOptions(r=4, alpha=8, dropout=0.0)
TASK = Task("a", "a", "Which?", ("x", "y"), (Example("0", "text", "x"),), (Example("0", "text", "y"),))
every_method = pytest.mark.parametrize("name", method_names())


@pytest.fixture
def adapter(tiny_model: Callable[[str], Path]) -> LoraAdapter:
    """A trained-looking adapter: no factor is zero."""
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_model("llama"))
    attached = LoraAdapter.attach(model, LORA, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for f in attached.factors().values():
            f.B.copy_(torch.randn(f.B.shape, generator=generator) * 0.1)
    return attached


def earlier(adapter: LoraAdapter) -> list[AdapterState]:
    """Two earlier stages' factors, different from the adapter's."""
    states = [adapter.state(), adapter.state()]
    for scale, state in zip((0.5, -0.25), states, strict=True):
        for f in state.values():
            f.A.mul_(scale)
            f.B.mul_(scale)
    return states


def begin(method: Method, adapter: LoraAdapter, states: Sequence[AdapterState]) -> None:
    """As a run does at a later stage: with the number of tasks, and what the method kept at the stage before."""
    assert method.check_sequence(len(states) + 1) == []
    examples = [TokenizedExample((5, 9, 17), (33, 2)), TokenizedExample((7, 7), (21, 2))]
    method.restore(
        method.end_task(adapter.model.get_base_model(), list(adapter.factors()), examples, pad_id=0)
    )
    method.begin_task(adapter, states)


def begun(name: str, adapter: LoraAdapter, **options: Any) -> Method:
    method = build(name, options)
    begin(method, adapter, earlier(adapter))
    return method


@every_method
def test_it_is_documented(name: str) -> None:
    info = describe(name)
    assert info.summary.endswith(".")
    assert 30 < len(info.summary) < 110
    for option in info.options:
        assert option.help.endswith("."), option.name
        assert option.type
    assert build(name, {}).name == name


@every_method
def test_the_modules_source_and_pitfalls_are_named(name: str) -> None:
    import importlib

    docstring = importlib.import_module(f"nlora.methods.{name}").__doc__ or ""
    assert "arXiv" in docstring
    assert "Pitfall" in docstring
    assert "eparture" in docstring or "released" in docstring


@every_method
def test_the_default_options_train_any_shape(name: str, adapter: LoraAdapter) -> None:
    """Grouped-query attention, where v is not square, must do without a change of options."""
    assert build(name, {}).check(target_modules(adapter.detach(), LORA)) == []


@every_method
def test_the_penalty_is_a_scalar_with_gradients_or_none(name: str, adapter: LoraAdapter) -> None:
    penalty = begun(name, adapter).penalty(adapter)
    if penalty is None:
        return
    assert penalty.shape == ()
    assert penalty >= 0
    parameters = [p for f in adapter.factors().values() for p in (f.A, f.B)]
    gradients = torch.autograd.grad(penalty, parameters, allow_unused=True)
    assert any(g is not None and g.any() for g in gradients)
    assert all(torch.isfinite(g).all() for g in gradients if g is not None)


@pytest.mark.parametrize("name", [n for n in method_names() if "weight" in build(n, {}).Options.model_fields])
def test_weight_zero_is_no_penalty_at_all(name: str, adapter: LoraAdapter) -> None:
    """Not a penalty times zero, which would turn one that is not finite into NaN."""
    assert begun(name, adapter, weight=0).penalty(adapter) is None


@every_method
def test_the_penalty_is_pure(name: str, adapter: LoraAdapter) -> None:
    method = begun(name, adapter)
    before = adapter.state()
    rng = torch.get_rng_state()
    first, second = method.penalty(adapter), method.penalty(adapter)
    if first is None or second is None:
        assert first is second
    else:
        assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), rng)
    for name_, f in adapter.factors().items():
        assert f.A.grad is None
        assert f.B.grad is None
        assert torch.equal(f.A, before[name_].A)
        assert torch.equal(f.B, before[name_].B)


@every_method
def test_begin_is_repeatable_and_leaves_the_earlier_states_alone(name: str, adapter: LoraAdapter) -> None:
    states = earlier(adapter)
    copies = [{n: (f.A.clone(), f.B.clone()) for n, f in state.items()} for state in states]
    results = []
    for _ in range(2):  # a stage that was interrupted begins again
        method = build(name, {})
        begin(method, adapter, states)
        results.append((adapter.state(), method.penalty(adapter)))
    (one, p1), (two, p2) = results
    assert all(torch.equal(one[n].A, two[n].A) and torch.equal(one[n].B, two[n].B) for n in one)
    assert (p1 is None and p2 is None) or (p1 is not None and p2 is not None and torch.equal(p1, p2))
    for state, copy in zip(states, copies, strict=True):
        for n, (A, B) in copy.items():
            assert torch.equal(state[n].A, A)
            assert torch.equal(state[n].B, B)


@every_method
def test_a_first_stage_begins_without_earlier_ones(name: str, adapter: LoraAdapter) -> None:
    before = adapter.state()
    method = build(name, {})
    assert method.check_sequence(2) == []
    method.begin_task(adapter, [])
    assert all(torch.equal(f.A, before[n].A) for n, f in adapter.state().items())


@every_method
def test_a_stage_trains_on_its_own_examples_at_least(name: str) -> None:
    ((task, examples), *_) = build(name, {}).examples([TASK], 0, seed=1)
    assert task is TASK
    assert set(TASK.train) <= set(examples)
