"""A Run keeps the model of its last call: loaded once per stage, right for every task, gone when released."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import nlora
from helpers import DESK_TASKS
from nlora.config.schema import EvaluateOptions
from nlora.runs import checkpoint

TEXTS = ["the billing thing", "it is down again", "the high thing", "low"]


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows by one with each model that is loaded."""
    loaded: list[str] = []
    load: Callable[..., Any] = checkpoint._backbone
    monkeypatch.setattr(checkpoint, "_backbone", lambda config: loaded.append(config.model) or load(config))
    return loaded


def test_a_model_is_loaded_once_for_each_stage(here: Path, loads: list[str]) -> None:
    run = nlora.open_run("runs/support")
    first = run.evaluate()
    assert run.predict([], task="tickets") == []
    run.predict(TEXTS, task="urgency", decode="generate", batch_size=1)
    again = run.evaluate(max_samples=3)
    assert [s.examples for s in again.scores] == [3, 3]
    assert set(map(str, again.predictions)) < set(map(str, first.predictions)), "a sample of the same answers"
    assert len(loads) == 1
    run.evaluate(["tickets"], stage=1)
    assert len(loads) == 2
    run.release()
    with run:
        run.evaluate(["tickets"], stage=1)
    run.evaluate(["tickets"], stage=1)
    assert len(loads) == 4


def test_a_stage_that_was_trained_again_is_loaded_again(here: Path, loads: list[str]) -> None:
    run = nlora.open_run("runs/support")
    run.predict(TEXTS, task="tickets")
    os.utime(run.stages[-1].folder, (1, 1))
    run.predict(TEXTS, task="tickets")
    assert len(loads) == 2


def test_a_loaded_model_answers_each_task_as_a_fresh_one_does(here: Path) -> None:
    """pertask has a model for each task; before a call, the updates of the call before must be gone."""
    settings = {"method": "pertask", "output_dir": "runs/own", "evaluate.decode": "generate"}
    run = nlora.run(nlora.load_config("support.yaml", settings))
    fresh = {task: nlora.open_run("runs/own").predict(TEXTS, task=task) for task in DESK_TASKS}
    assert fresh["tickets"] != fresh["urgency"]
    for task in [*DESK_TASKS, *reversed(DESK_TASKS)]:
        assert run.predict(TEXTS, task=task) == fresh[task]
    assert [s.score for s in run.evaluate().scores] == list(run.summary.R[1])


def test_the_keys_of_evaluate_are_checked(here: Path) -> None:
    run = nlora.open_run("runs/support")
    (score,) = run.evaluate(["tickets"], decode="generate", split="validation").scores
    assert score.decode == "generate"
    assert score.differs_from_run
    with pytest.raises(nlora.InputErrors, match=r"batch_sise.*: unknown key; did you mean 'batch_size'"):
        run.evaluate(batch_sise=3)
    with pytest.raises(nlora.InputErrors, match="must be test or validation, not 'dev'"):
        run.evaluate(split="dev")


def test_keys_that_would_change_nothing_are_refused(here: Path, loads: list[str]) -> None:
    run, values = nlora.open_run("runs/support"), EvaluateOptions(max_samples=3).model_dump()

    def told(ask: Callable[..., Any], **settings: Any) -> str:
        try:
            ask(**settings)
        except nlora.InputErrors as error:
            return str(error)
        return ""

    def predict(**settings: Any) -> Any:
        return run.predict([], task="tickets", **settings)

    def evaluate(**settings: Any) -> Any:
        return run.evaluate(["nobody"], **settings)

    nothing = "changes nothing here; the keys of evaluate that do are "
    for ask, keys in (
        (predict, "batch_size, decode"),
        (evaluate, "batch_size, decode, max_samples, split, unseen, validation_share"),
    ):
        for key, value in values.items():
            expected = "" if key in keys.split(", ") else f"evaluate.{key}: {nothing}{keys}"
            assert told(ask, **{key: value}).removeprefix(told(ask)) == expected
    assert told(evaluate, **{"general.texts": 3}).startswith(f"evaluate.general.texts: {nothing}")
    assert told(predict, split="dev", zero_shot=True).count(nothing) == 2
    assert loads == []
