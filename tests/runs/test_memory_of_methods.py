"""What the methods of a run hold in memory from stage to stage."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import COLORS, write_config, write_task
from nlora.api.learn import learn as learn_run
from nlora.config.load import load_config
from nlora.methods.base import Method
from nlora.models.lora_factors import LoraFactors
from nlora.runs.events import Progress

TinyModel = Callable[[str], Path]
TASKS = [f"task{i}" for i in range(3)]
WEIGHTED = ("olora", "ella", "clora", "ewc")
OTHERS = {
    "oplora": ("share", 0.1),
    "inflora": ("threshold", 0.2),
    "gorp": ("threshold", 0.2),
    "magmax": ("scale", 0.2),
}


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        yield from tensors_in(list(value.values()))
    elif isinstance(value, list | tuple):
        for one in value:
            yield from tensors_in(one)
    elif isinstance(value, LoraFactors):
        yield from tensors_in([value.A, value.B])
    elif type(value).__module__.startswith("nlora.methods"):
        yield from tensors_in(list(vars(value).values()))


ALIVE: weakref.WeakSet[Method] = weakref.WeakSet()


@pytest.fixture(autouse=True)
def _only_what_the_test_makes(monkeypatch: pytest.MonkeyPatch) -> None:
    """`ALIVE` is every method that is made from here on, as long as anything holds it."""
    make = Method.__init__

    def make_and_note(self: Method, options: Any) -> None:
        make(self, options)
        ALIVE.add(self)

    ALIVE.clear()
    monkeypatch.setattr(Method, "__init__", make_and_note)


def held() -> int:
    """The bytes of the tensors that methods hold."""
    assert len(ALIVE) > 0
    storages = [t.untyped_storage() for t in tensors_in(list(ALIVE))]
    return sum({s.data_ptr(): s.nbytes() for s in storages}.values())


class Measured(Progress):
    """Measures all methods that are alive."""

    def __init__(self) -> None:
        super().__init__()
        self.trained: list[int] = []
        self.done: list[int] = []

    def scoring(self, stage: int, task: str, examples: int) -> Any:
        if len(self.trained) < stage:  # its first scoring: nothing has been answered yet
            self.trained.append(held())
        return super().scoring(stage, task, examples)

    def stage_done(self, stage: int, task: str, scores: Any) -> None:
        self.done.append(held())


def run_of(folder: Path, model: Path, method: dict[str, Any], **changes: Any) -> Measured:
    tasks = [write_task(folder, name, COLORS, train=24, test=3) for name in TASKS]
    values: dict[str, Any] = {
        "tasks": tasks,
        "method": method,
        "train": {"epochs": 1, "batch_size": 8, "learning_rate": 5e-3},
        "evaluate": {"validation_share": 0.5},
        "auto_weight": {"tries": 1},
    }
    measured = Measured()
    learn_run(load_config(write_config(folder, model, **values | changes)), measured)
    return measured


@pytest.mark.parametrize(
    ("name", "how"),
    [(name, how) for name in WEIGHTED for how in ("weight", "auto", "stages")]
    + [(name, "stages") for name in OTHERS],
)
def test_no_method_holds_anything_once_its_stage_is_over(
    name: str, how: str, tiny_model: TinyModel, tmp_path: Path
) -> None:
    """So memory does not grow with the tasks, whether they share one object of the method or not."""
    option, unit = OTHERS.get(name, ("weight", 0.1))
    method: dict[str, Any] = {"name": name}
    stages: dict[str, Any] = {}
    if how == "stages":
        stages = {task: {"method": {option: unit * i}} for i, task in enumerate(TASKS, start=1)}
    else:
        method["weight"] = "auto" if how == "auto" else unit
    found = run_of(tmp_path, tiny_model("llama"), method, stages=stages)
    assert found.done == [0] * len(TASKS)
    if name != "magmax":  # it has merged what answers
        assert found.trained == [0] * len(TASKS)  # a GPU is free for scoring
