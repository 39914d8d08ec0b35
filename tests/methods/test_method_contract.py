"""Every built-in method keeps the contract, and the contract's checks notice methods that do not."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from pydantic import Field

from nlora.methods.base import Method, MethodOptions
from nlora.methods.contract import check_method, parametrize_with_checks
from nlora.methods.registry import build, builtin_names


@parametrize_with_checks(builtin_names())
def test_a_built_in_method_keeps_the_contract(check: Callable[[], None]) -> None:
    check()


@pytest.mark.parametrize("name", builtin_names())
def test_a_built_in_method_names_its_source_departures_and_pitfalls(name: str) -> None:
    docstring = importlib.import_module(f"nlora.methods.{name}").__doc__ or ""
    assert build(name, {}).name == name
    assert "arXiv" in docstring
    assert "Pitfall" in docstring
    assert "Departure" in docstring


class Options(MethodOptions):
    weight: float = Field(0.1, ge=0, description="Weight of the penalty.")


class Good(Method[Options]):
    """The sum of all squared factors, which nothing is wrong with."""

    def penalty(self, adapter: Any) -> Any:
        if self.options.weight == 0:
            return None
        return self.options.weight * sum((f.A**2).sum() + (f.B**2).sum() for f in adapter.factors().values())


class Frozen(Good):
    """Trains B alone, and has a penalty."""

    def begin_task(self, adapter: Any, earlier: Sequence[Any]) -> None:
        for f in adapter.factors().values():
            f.A.requires_grad_(False)


class Negative(Good):
    def penalty(self, adapter: Any) -> Any:
        return -(super().penalty(adapter) or 0)


class Detached(Good):
    def penalty(self, adapter: Any) -> Any:
        return torch.zeros((), requires_grad=True) * sum(f.B.sum() for f in adapter.factors().values())


class Random(Good):
    def penalty(self, adapter: Any) -> Any:
        penalty = super().penalty(adapter)
        return None if penalty is None else penalty * (1 + torch.rand(()))


class Moving(Good):
    def penalty(self, adapter: Any) -> Any:
        with torch.no_grad():
            for f in adapter.factors().values():
                f.B.add_(1)
        return super().penalty(adapter)


class ZeroTimes(Good):
    def penalty(self, adapter: Any) -> Any:
        return self.options.weight * sum((f.B**2).sum() for f in adapter.factors().values())


class Continuing(Good):
    updates = "continued"

    def begin_task(self, adapter: Any, earlier: Sequence[Any]) -> None:
        """Forgets to call the base class."""


class Overwriting(Good):
    def begin_task(self, adapter: Any, earlier: Sequence[Any]) -> None:
        for state in earlier:
            for f in state.values():
                f.A.mul_(2)


class Training(Good):
    trains = "weights"


class Drawing(Good):
    def examples(self, tasks: Sequence[Any], index: int, seed: int) -> Any:
        return [(tasks[index], [tasks[index].train[int(torch.randint(40, ()))]])]


class Shaking(Good):
    def after_step(self, adapter: Any, **step: Any) -> None:
        with torch.no_grad():
            for f in adapter.factors().values():
                f.B.add_(torch.rand(f.B.shape))


class Forgetting(Good):
    """Counts the steps, and does not save the number."""

    seen = 0

    def after_step(self, adapter: Any, **step: Any) -> None:
        self.seen += 1
        with torch.no_grad():
            for f in adapter.factors().values():
                f.B.mul_(1 / self.seen)


class Undescribed(MethodOptions):
    strength: int = 1


class Undocumented(Method[Undescribed]):
    pass


@pytest.mark.parametrize(
    ("kind", "check"),
    [
        (Negative, "the_penalty_is_a_scalar_with_gradients"),
        (Detached, "the_penalty_is_a_scalar_with_gradients"),
        (Random, "begin_task_is_repeatable"),
        (Moving, "the_penalty_is_pure"),
        (ZeroTimes, "weight_zero_is_no_penalty"),
        (Continuing, "continues_the_previous_update"),
        (Overwriting, "begin_task_is_repeatable"),
        (Training, "says_that_it_needs_float_weights"),
        (Drawing, "trains_on_the_tasks_own_examples"),
        (Shaking, "after_step_is_repeatable"),
        (Forgetting, "after_step_is_repeatable"),
        (Undocumented, "is_documented"),
    ],
)
def test_a_method_that_breaks_the_contract_is_told_which_check_failed(kind: type[Method], check: str) -> None:
    with pytest.raises(AssertionError) as caught:
        check_method(kind)
    assert caught.value.__notes__[0].startswith(f"{check}: ")


def test_a_class_keeps_the_contract_with_other_options() -> None:
    check_method(Good)
    check_method(Frozen)
    check_method(Good, {"weight": 3})
