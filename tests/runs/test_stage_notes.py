"""Odd outcomes are said in words: in the record, the summary, the events, the log and the page."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import write_config
from nlora.api.learn import learn
from nlora.config.load import load_config
from nlora.config.train_options import TrainOptions
from nlora.data.task import Example, Task
from nlora.errors import RunError
from nlora.evaluation.evaluator import Answers
from nlora.methods.nlora import Nlora
from nlora.models.lora_factors import LoraFactors
from nlora.report.page import render
from nlora.report.run_files import load_runs
from nlora.runs.events import Event, Progress
from nlora.runs.stage_notes import answer_notes, training_notes
from nlora.training.result import TrainResult

OPTIONS = TrainOptions(learning_rate=1e-3)
RESULT = TrainResult(
    steps=40, examples=8, epochs=1, seconds=1, loss=1, penalty=0.0, padding_share=0, peak_memory_bytes=0,
    trained_parameters=1, loss_before=2.0, loss_after=1.0,
)  # fmt: skip
A = torch.full((2, 3), 0.5)


def factors(b: float) -> dict[str, LoraFactors]:
    return {"layer": LoraFactors(A, torch.full((4, 2), b), 1.0)}


def notes(b: float = 0.1, **changes: Any) -> str:
    return " | ".join(training_notes(replace(RESULT, **changes), factors(b), OPTIONS))


def test_an_ordinary_stage_has_no_notes() -> None:
    assert notes() == ""
    assert notes(penalty=0.3) == ""


@pytest.mark.parametrize(
    ("after", "moved"), [(2.0, False), (1.9981, False), (2.0019, False), (1.99, True), (3.0, True)]
)
def test_a_loss_that_changed_by_less_than_a_thousandth_never_moved(after: float, moved: bool) -> None:
    assert ("the loss never moved" in notes(loss_after=after)) is not moved


def test_a_loss_that_was_0_already_or_is_unknown_is_no_news() -> None:
    assert notes(loss_before=0.0, loss_after=0.0) == ""
    assert notes(loss_before=None, loss_after=None) == ""


def test_a_way_out_names_the_penalty_only_where_there_is_one() -> None:
    assert "method.weight" not in notes(loss_after=2.0)
    assert "method.weight" in notes(loss_after=2.0, penalty=0.3)


def test_a_penalty_that_pulls_back_every_entry_is_named() -> None:
    """Four steps of learning rate 1e-3 from zero, after 40 steps."""
    assert "the penalty drove the update to zero" in notes(b=0.0039, penalty=0.3)
    assert notes(b=0.0041, penalty=0.3) == ""
    assert notes(b=0.0039, penalty=0.0) == ""  # nothing pulled
    assert notes(b=0.0039, penalty=0.3, steps=29) == ""  # too early to say


def test_a_penalty_is_not_blamed_for_a_long_warm_up() -> None:
    """The rates of 40 steps of a warm-up of 300 are together 2.6 times the learning rate."""
    for warmup, steps, is_said in ((300, 40, False), (40, 40, False), (20, 39, False), (20, 40, True)):
        options = TrainOptions(learning_rate=1e-3, warmup_steps=warmup)
        found = training_notes(replace(RESULT, penalty=0.3, steps=steps), factors(0.0002), options)
        assert bool(found) is is_said


def test_an_update_that_is_still_zero_is_named() -> None:
    assert notes(b=0.0, penalty=0.3) == "the update of layer is still 0; it learned nothing"


def test_answers_that_are_all_one_label_are_counted() -> None:
    def noted(labels: str, answers: str) -> list[str]:
        test = tuple(Example(str(i), "text", label) for i, label in enumerate(labels))
        task = Task("t", "t", "?", ("a", "b"), train=(), test=test)
        return answer_notes([task], {"t": Answers(tuple(answers), "labels", 0.0, 1)})

    assert noted("ab" * 10, "a" * 20) == ["all 20 answers to t are 'a', which is right for 10 of them"]
    assert noted("ab" * 10, "a" * 19 + "b") == []
    assert noted("a" * 20, "a" * 20) == []  # as they should be
    assert noted("ab" * 9, "a" * 18) == []  # few answers may be alike by chance
    assert noted("ab" * 10, "cd" * 10) == [
        "none of the 20 answers to t is one of its labels; the first is 'c'; evaluate.decode: labels chooses among them"
    ]
    assert noted("ab" * 10, "c" * 19 + "B") == []  # one is, once both are normalized


def test_a_learning_rate_that_is_too_small_is_said_everywhere(
    tmp_path: Path, tiny_model: Callable[[str], Path]
) -> None:
    train = {"epochs": 1, "batch_size": 8, "learning_rate": 1e-9}
    said: list[Event] = []
    loaded = load_config(write_config(tmp_path, tiny_model("llama"), train=train), [])
    summary = learn(loaded, Progress(said.append))
    record = json.loads(next((tmp_path / "run/outputs").glob("1-*/stage.json")).read_text())
    (note,) = record["notes"]
    assert note.startswith("the loss never moved: on the first training examples it is ")
    line = f"stage 1, colors: {note}"
    assert line in summary.notes
    assert line in [event.text for event in said]
    assert line in (tmp_path / "run/logs/train_and_infer.log").read_text()
    assert note in render(load_runs([tmp_path / "run"]))


def test_a_refused_step_names_task_step_and_texts_and_keeps_earlier_stages(
    tmp_path: Path, tiny_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second task's penalty is not a number; the first task's stage stays, and the same command goes on."""
    config = write_config(tmp_path, tiny_model("llama"))
    monkeypatch.setattr(Nlora, "penalty", broken_penalty(Nlora.penalty, at=6))  # of 2 x 4 steps
    with pytest.raises(RunError) as caught:
        learn(load_config(config, []), Progress())
    message = str(caught.value)
    assert message.startswith("stage 2, animals, step 2: the penalty is nan, so the step was not taken")
    train = [json.loads(row) for row in (tmp_path / "animals-train.jsonl").read_text().splitlines()]
    numbers = [i for i, row in enumerate(train) if f'{i} "{row["sentence"]}"' in message]
    assert len(numbers) == 3
    assert " and 5 more; " in message
    assert [folder.name for folder in (tmp_path / "run/outputs").iterdir()] == ["1-colors"]
    monkeypatch.undo()
    assert learn(load_config(config, []), Progress()).status == "complete"


def broken_penalty(penalty: Any, at: int) -> Any:
    calls = []

    def broken(self: Any, adapter: Any) -> Any:
        calls.append(1)
        return penalty(self, adapter) * (float("nan") if len(calls) == at else 1.0)

    return broken
