"""A configuration's mistakes are taken out, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from nlora.config.recover import drop_invalid
from nlora.config.schema import Config

RIGHT: dict[str, Any] = {"tasks": ["a", {"name": "b"}], "train": {"epochs": 3}, "seed": 7}


def test_a_right_configuration_stays_whole() -> None:
    assert drop_invalid(RIGHT) == (Config.model_validate(RIGHT), frozenset())


@pytest.mark.parametrize(
    ("mistake", "doubtful"),
    [
        ({"train": {"epochs": 3, "epohcs": 1}}, ("train", "epohcs")),
        ({"sead": 1}, ("sead",)),
        ({"model": 5}, ("model",)),
        ({"dtype": "float8"}, ("dtype",)),
        ({"method": ["nlora"]}, ("method",)),
        ({"output_dir": None}, ("output_dir",)),
        ({"stages": {"a": {"train": {"learning_rate": "much"}}}}, ("stages", "a")),
        ({"stages": {"a": {"trian": {}}}}, ("stages", "a")),
        ({"stages": 3}, ("stages",)),
    ],
)
def test_what_is_wrong_goes_and_the_rest_stays(mistake: dict[str, Any], doubtful: tuple[str, ...]) -> None:
    before = {**RIGHT, **mistake}
    config, keys = drop_invalid(before)
    assert keys == {doubtful}
    assert config == Config.model_validate(RIGHT)
    assert before == {**RIGHT, **mistake}, "the values given must stay as they are"


@pytest.mark.parametrize(
    "wrong", [5, {"name": "x", "trian": "f"}, {"train": "f"}, {"name": "x", "train": "f"}]
)
def test_a_wrong_task_keeps_its_place(wrong: Any) -> None:
    config, keys = drop_invalid({**RIGHT, "tasks": ["a", wrong, "c"]})
    assert keys == {("tasks", 1)}
    assert config is not None
    assert [config.tasks[0].name, config.tasks[2].name] == ["a", "c"]
    assert config.train.epochs == 3


def test_options_that_are_wrong_only_together_go_with_their_section() -> None:
    config, keys = drop_invalid({**RIGHT, "train": {"batch_size": 8, "micro_batch_size": 3}})
    assert keys == {("train",)}
    assert config is not None
    assert config.train == Config.model_validate({"tasks": ["a"]}).train


@pytest.mark.parametrize("tasks", [None, 3, [], {}])
def test_without_tasks_the_rest_can_still_be_checked(tasks: Any) -> None:
    config, keys = drop_invalid({**RIGHT, "tasks": tasks})
    assert keys == {("tasks",)}
    assert config is not None
    assert config.seed == 7
