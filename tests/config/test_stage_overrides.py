"""Overrides of the whole run beside settings of single tasks."""

from __future__ import annotations

from typing import Any

import pytest

from nlora.config.load import load_config
from nlora.config.overrides import apply_to_stages, as_overrides, parse


def stages(*overrides: str) -> Any:
    data: dict[str, Any] = {
        "tasks": ["a", {"name": "b"}],
        "stages": {
            "a": {"train": {"epochs": 5, "batch_size": 4}, "method": {"weight": 1.2}},
            "b": {"method": {"weight": 0.4, "penalty": "factor_l1"}},
        },
    }
    apply_to_stages(data, ["a", "b"], as_overrides(overrides, []))
    return data["stages"]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["stages={}", "method=olora"], stages()),
        (["stages.a={}", "method=olora"], {"a": stages()["a"], "b": {"method": {}}}),
        (["seed=1", "lora.r=4"], stages()),
        (["train.epochs=1"], {**stages(), "a": {"train": {"batch_size": 4}, "method": {"weight": 1.2}}}),
        (["train={epochs: 1}"], {**stages(), "a": {"train": {"batch_size": 4}, "method": {"weight": 1.2}}}),
        (["method={name: olora}"], {"a": {**stages()["a"], "method": {}}, "b": {"method": {}}}),
        (["method.weight=0"], {"a": {**stages()["a"], "method": {}}, "b": {"method": {"penalty": "factor_l1"}}}),
        (["method.penalty=update_l1"], {"a": {**stages()["a"], "method": {}}, "b": {"method": {}}}),
        (["method=olora"], {"a": {**stages()["a"], "method": {}}, "b": {"method": {}}}),
        (["method.name=olora"], {"a": {**stages()["a"], "method": {}}, "b": {"method": {}}}),
        (["method=olora", "stages.b.method.weight=2"],
         {"a": {**stages()["a"], "method": {}}, "b": {"method": {"weight": 0.4}}}),
    ],
)  # fmt: skip
def test_what_is_typed_holds_for_every_task(overrides: list[str], expected: Any) -> None:
    assert stages(*overrides) == expected


def test_a_task_that_leaves_takes_its_stage_and_no_other() -> None:
    data: dict[str, Any] = {"tasks": ["b"], "stages": {"a": {}, "ab": {}, "b": {}}}
    apply_to_stages(data, ["a", "ab", "b"], [parse("tasks=[b]"), parse("stages.ab.train.epochs=1")])
    assert data["stages"].keys() == {"ab", "b"}


def test_without_overrides_nothing_changes() -> None:
    assert stages() == {
        "a": {"train": {"epochs": 5, "batch_size": 4}, "method": {"weight": 1.2}},
        "b": {"method": {"weight": 0.4, "penalty": "factor_l1"}},
    }


def test_a_published_order_runs_another_method_without_its_weights() -> None:
    order = load_config("order_4").config
    assert order.method_options("WiC")["weight"] == 1.2
    other = load_config("order_4", ["method=olora"]).config
    assert [other.method_options(task.name) for task in other.tasks] == [{}] * 15
    zero = load_config("order_4", ["method.weight=0"]).config
    assert {zero.method_options(task.name)["weight"] for task in zero.tasks} == {0}
    faster = load_config("llama_order_1", ["train.epochs=1"]).config
    assert {faster.train_options(task.name).epochs for task in faster.tasks} == {1}
    assert faster.train_options("amazon").learning_rate == 1e-4
