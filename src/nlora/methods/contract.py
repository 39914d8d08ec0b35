"""The contract that every method must keep, as checks for its author's own test suite.

docs/methods.md shows how to use them. They need no network: they run on a random model with two layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nlora.data.columns import TokenizedExamples
from nlora.methods._contract_cases import (
    EXAMPLES,
    LORA,
    TASKS,
    Make,
    after_steps,
    attached,
    begun,
    earlier_states,
    tiny_model,
)
from nlora.methods.base import Method, MethodOptions
from nlora.methods.registry import find, info_of
from nlora.models.lora_adapter import AdapterState, target_modules

MethodLike = str | Path | type[Method]
"""A method's name, the path of its file, or its class."""


def check_method(method: MethodLike, options: Mapping[str, Any] | None = None) -> None:
    """Check that a method keeps the contract. Raises what the first failing check raises, with its name as a note.

    options: those that differ from the method's defaults.

    >>> check_method("ella", {"weight": 10})
    """
    for check in _CHECKS:
        try:
            check(partial(_made, method, options or {}))
        except Exception as error:
            error.add_note(f"{check.__name__}: {check.__doc__}")
            raise


def parametrize_with_checks(
    methods: Iterable[MethodLike], options: Mapping[str, Any] | None = None
) -> Callable[[Any], Any]:
    """A pytest decorator that runs a test once for each check of each method, with the argument `check`.

    The test calls `check()`. options: as for `check_method`.
    """
    import pytest

    return pytest.mark.parametrize(
        "check",
        [
            pytest.param(
                partial(check, partial(_made, method, options or {})), id=f"{_name(method)}-{check.__name__}"
            )
            for method in methods
            for check in _CHECKS
        ],
    )


def _made(method: MethodLike, options: Mapping[str, Any], **changes: Any) -> Method:
    kind = method if isinstance(method, type) else find(str(method))
    return kind(kind.Options.model_validate({**options, **changes}))


def _name(method: MethodLike) -> str:
    return method.__name__ if isinstance(method, type) else Path(method).stem


# The checks. The docstring of each says what must hold; it is shown when the check fails.


def is_documented(make: Make) -> None:
    """The module's docstring begins with one sentence, and every option has a description that ends with a period."""
    info = info_of(type(make()))
    assert info.summary.endswith("."), f"the docstring's first line should be a sentence: {info.summary!r}"
    assert 30 < len(info.summary) < 110, f"the docstring's first line has {len(info.summary)} characters"
    for option in info.options:
        assert option.help.endswith("."), f"option {option.name} has no description that ends with a period"


def options_are_typed(make: Make) -> None:
    """The options are a subclass of MethodOptions, named in `class Mine(Method[MyOptions])`."""
    method = make()
    assert issubclass(method.Options, MethodOptions)
    assert type(method.options) is method.Options


def says_that_it_needs_float_weights(make: Make) -> None:
    """A method that trains weights sets `needs_float_weights`."""
    method = make()
    assert method.trains != "weights" or method.needs_float_weights


def trains_layers_of_any_shape(make: Make) -> None:
    """`check` accepts layers whose numbers of inputs and outputs differ, as grouped-query attention has."""
    assert make().check(target_modules(tiny_model(), LORA)) == []


def trains_on_the_tasks_own_examples(make: Make) -> None:
    """`examples` returns the last task's own examples, and the same ones for the same seed."""
    first, again = (make().examples(TASKS, 1, seed=1) for _ in range(2))
    assert first == again
    assert set(TASKS[1].train) <= {
        example for task, examples in first if task is TASKS[1] for example in examples
    }


def a_first_stage_starts_as_the_backbone(make: Make) -> None:
    """`begin_task` works without earlier updates, and leaves the fresh adapter's update zero."""
    method, adapter = attached(make, stage=1)
    method.begin_task(adapter, [])
    assert not any(f.update().any() for f in adapter.state().values()), "the update is not zero"


def begin_task_is_repeatable(make: Make) -> None:
    """`begin_task` leaves the earlier updates alone, and does the same again after an interruption."""
    results = []
    for _ in range(2):
        method, adapter, earlier = begun(make)
        for state, untouched in zip(earlier, earlier_states(adapter), strict=True):
            _assert_same(state, untouched)
        results.append((adapter.state(), method.penalty(adapter)))
    (one, one_penalty), (two, two_penalty) = results
    _assert_same(one, two)
    _assert_equal(one_penalty, two_penalty)


def continues_the_previous_update(make: Make) -> None:
    """A method whose `updates` are "continued" starts a stage from the previous stage's factors, unless it merges."""
    method, adapter, earlier = begun(make)
    if method.updates == "continued" and not method.merges:
        _assert_same(adapter.state(), earlier[-1])


def says_that_it_merges(make: Make) -> None:
    """`active_for` returns some of the given updates; if the method `merges`, one that is made of them, once."""
    method, _, earlier = begun(make)
    active, again = method.active_for(earlier, 1), method.active_for(earlier, 1)
    assert [id(state) for state in active] == [id(state) for state in again], (
        "the same updates are merged twice"
    )
    assert all(any(state is one for one in earlier) != method.merges for state in active)
    assert list(method.active_for([], 0)) == []


def the_penalty_is_a_scalar_with_gradients(make: Make) -> None:
    """`penalty` returns None, or a finite scalar >= 0 that has a finite gradient for some factor."""
    method, adapter, _ = begun(make)
    penalty = method.penalty(adapter)
    if penalty is None:
        return
    assert penalty.shape == (), f"the penalty has shape {tuple(penalty.shape)}"
    assert penalty >= 0, f"the penalty is {penalty.item()}"
    parameters = [p for f in adapter.factors().values() for p in (f.A, f.B) if p.requires_grad]
    gradients = [g for g in torch.autograd.grad(penalty, parameters, allow_unused=True) if g is not None]
    assert any(g.any() for g in gradients), "the penalty has no gradient"
    assert all(torch.isfinite(g).all() for g in gradients), "the penalty's gradient is not finite"


def the_penalty_is_pure(make: Make) -> None:
    """`penalty` draws no random numbers and changes neither the factors nor their `.grad`."""
    method, adapter, _ = begun(make)
    before, random = adapter.state(), torch.get_rng_state()
    _assert_equal(method.penalty(adapter), method.penalty(adapter))
    assert torch.equal(torch.get_rng_state(), random), "the penalty draws random numbers"
    _assert_same(adapter.state(), before)
    assert all(f.A.grad is None and f.B.grad is None for f in adapter.factors().values()), "it sets .grad"


def weight_zero_is_no_penalty(make: Make) -> None:
    """If there is an option `weight`, 0 turns the penalty off: None, not a product that could be NaN."""
    if "weight" in make().Options.model_fields:
        method, adapter, _ = begun(partial(make, weight=0))
        assert method.penalty(adapter) is None
        logits = torch.randn(2, 3, 7)
        assert method.extra_loss(logits, torch.ones(2, 3, dtype=torch.int64), logits.clone) is None


def the_extra_loss_is_a_scalar_with_gradients(make: Make) -> None:
    """`extra_loss` returns None, or a finite scalar with a finite gradient for the logits."""
    method, _, _ = begun(make)
    draw = torch.Generator().manual_seed(5)
    logits, before = (torch.randn(2, 3, 7, generator=draw) for _ in range(2))
    logits.requires_grad_(True)
    targets = torch.tensor([[1, 2, 3], [4, -100, -100]])
    loss = method.extra_loss(logits, targets, lambda: before)
    if loss is not None:
        assert loss.shape == (), f"the loss has shape {tuple(loss.shape)}"
        (gradient,) = torch.autograd.grad(loss, logits)
        assert torch.isfinite(gradient).all(), "the gradient is not finite"


def after_step_is_repeatable(make: Make) -> None:
    """`after_step` draws no random numbers, leaves `.grad` alone, and does the same again after an interruption."""
    whole, resumed = (after_steps(make, resumed_after=step) for step in (None, 2))
    _assert_same(whole, resumed)


def begins_prompts_with_the_tokens_that_it_announces(make: Make) -> None:
    """`beginning` adds at most `soft_tokens` tokens before each prompt and leaves the rest as it is."""
    method, adapter = attached(make, stage=1)
    model, given = adapter.detach(), TokenizedExamples.of(EXAMPLES)
    for index in range(4):  # the last one is of no task of the sequence
        begun = method.beginning(index, model, given)
        added = [len(new.prompt_ids) - len(old.prompt_ids) for new, old in zip(begun, given, strict=True)]
        assert all(0 <= count <= method.soft_tokens(3) for count in added), f"it adds {added} tokens"
        for new, old, count in zip(begun, given, added, strict=True):
            assert new == old.beginning_with(new.prompt_ids[:count]), f"it changes {old} to {new}"


_CHECKS: tuple[Callable[[Make], None], ...] = (
    is_documented,
    options_are_typed,
    says_that_it_needs_float_weights,
    trains_layers_of_any_shape,
    trains_on_the_tasks_own_examples,
    a_first_stage_starts_as_the_backbone,
    begin_task_is_repeatable,
    continues_the_previous_update,
    says_that_it_merges,
    the_penalty_is_a_scalar_with_gradients,
    the_penalty_is_pure,
    weight_zero_is_no_penalty,
    the_extra_loss_is_a_scalar_with_gradients,
    after_step_is_repeatable,
    begins_prompts_with_the_tokens_that_it_announces,
)


def _assert_same(one: AdapterState, other: AdapterState) -> None:
    assert one.keys() == other.keys()
    for name, f in one.items():
        assert torch.equal(f.A, other[name].A), f"A of {name} differs"
        assert torch.equal(f.B, other[name].B), f"B of {name} differs"


def _assert_equal(one: Tensor | None, other: Tensor | None) -> None:
    assert (one is None) == (other is None)
    assert one is None or other is None or torch.equal(one, other), f"{one} and {other} should be the same"
