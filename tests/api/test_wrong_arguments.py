"""Arguments of the wrong kind from Python: one line each, under the argument's own name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import nlora

RUN = "runs/support"
pytestmark = pytest.mark.usefixtures("here")


def opened() -> Any:
    return nlora.open_run(RUN)


STAGE = "must be the number of a stage, not"
DROP = "max_drop: must be a number of percentage points >= 0, not"
TEXTS = "overrides: must be a list of texts such as train.epochs=3, or a mapping, not"
MISTAKES: dict[str, tuple[Callable[[], Any], str]] = {
    "stage text": (lambda: opened().predict(["x"], task="tickets", stage="1"), f"stage: {STAGE} '1'"),
    "stage bool": (lambda: opened().predict(["x"], task="tickets", stage=True), f"stage: {STAGE} True"),
    "stage float": (lambda: opened().evaluate(stage=1.0), f"stage: {STAGE} 1.0"),
    "stage word": (lambda: opened().model(stage="last"), f"stage: {STAGE} 'last'"),
    "stage of gate": (lambda: nlora.gate(RUN, against_stage="1"), f"against_stage: {STAGE} '1'"),
    "task": (lambda: opened().predict(["x"], task=5), "task: the name of a task is text, not 5"),
    "task of model": (lambda: opened().model(task=5), "task: no task of the run is called '5'; the tasks"),
    "tasks": (lambda: opened().evaluate([5]), "tasks: the name of a task is text, not 5"),
    "no tasks": (lambda: opened().evaluate([]), "tasks: names no task; leave it out for all tasks"),
    "drop": (lambda: nlora.gate(RUN, max_drop="2"), f"{DROP} '2'"),
    "drop sign": (lambda: nlora.gate(RUN, max_drop=-1), f"{DROP} -1"),
    "alpha": (lambda: nlora.gate(RUN, alpha="x"), "alpha: must be between 0 and 1, not 'x'"),
    "form": (lambda: opened().export("out", "whole"), "form: unknown value 'whole'"),
    "rank": (lambda: opened().export("out", "adapter", rank="4"), "rank: must be a whole number >= 1, not '4'"),
    "half a rank": (lambda: opened().export("out", "adapter", rank=2.5), "rank: must be a whole number >= 1, not 2.5"),
    "examples": (
        lambda: opened().export("out", "merged", examples="3"),
        "examples: must be a whole number >= 1, not '3'",
    ),
    "sparse": (lambda: opened().export("out", "sparse", threshold="x"), "threshold: must be a number >= 0, not 'x'"),
    "density": (
        lambda: opened().export("out", "adapter", merge="ties", rank=2, density="x"),
        "density: must be a share > 0 and <= 1, not 'x'",
    ),
    "threshold text": (lambda: nlora.interference(RUN, threshold="x"), "threshold: must be a number >= 0, not 'x'"),
    "threshold": (lambda: nlora.interference(RUN, threshold=-1), "threshold: must be a number >= 0, not -1"),
    "no adapters": (lambda: nlora.interference([]), "adapters: give two or more; an adapter is compared with others"),
    "out": (lambda: opened().export("tickets", "merged"), "out: tickets holds something already"),
    "overrides": (lambda: nlora.load_config("support.yaml", [5]), f"{TEXTS} [5]"),
    "no overrides": (lambda: nlora.load_config("support.yaml", None), f"{TEXTS} None"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_wrong_argument_is_one_line(name: str) -> None:
    call, message = MISTAKES[name]
    with pytest.raises(nlora.InputErrors) as told:
        call()
    assert str(told.value).startswith(message)
    assert "\n" not in str(told.value)


def test_a_run_is_opened_by_its_path() -> None:
    with pytest.raises(nlora.RunError, match=r"^None is no path; give the output_dir of a run$"):
        nlora.open_run(None)  # type: ignore[arg-type]
    assert nlora.open_run(Path(RUN)).folder.name == "support"
