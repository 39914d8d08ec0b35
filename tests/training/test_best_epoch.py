"""`train.early_stopping`: scored on a part of train, stopped in time, and the best epoch's adapter committed."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import COLORS, learn, write_config, write_task
from nlora.config.load import load_config
from nlora.errors import InputErrors
from nlora.models.lora_factors import load_factors
from nlora.runs import stage_training
from nlora.runs.plan import make_plan

TinyModel = Callable[[str], Path]
TRAIN = {"epochs": 6, "batch_size": 4, "learning_rate": 5e-3}


def one_task(folder: Path, model: Path, **train: Any) -> Path:
    task = write_task(folder, "shades", COLORS, train=24)
    return write_config(folder, model, tasks=[task], train={**TRAIN, **train})


def scripted(monkeypatch: pytest.MonkeyPatch, scores: Sequence[float]) -> list[float]:
    """Each epoch gets the next of these scores; returns a list of those that were given."""
    given: list[float] = []

    def scorer(*args: Any) -> Callable[[], float]:
        def score() -> float:
            given.append(scores[len(given)])
            return given[-1]

        return score

    monkeypatch.setattr(stage_training, "held_out_score", scorer)
    return given


def record(run: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((run / "outputs" / "1-shades" / "stage.json").read_text())
    return values


@pytest.mark.parametrize(
    ("calibration", "scores", "stopped", "best"),
    [
        (1 / 3, [90, 95, 50, 60, 55, 70], 5, 4),  # the second epoch ends with a B of zero
        (0.4, [90, 95, 80, 60, 55, 70], 4, 3),
        (1, [90, 95, 99, 60, 55, 10], 6, 6),
    ],
)
def test_epochs_that_a_method_cannot_end_with_do_not_count(
    tmp_path: Path, tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch,
    calibration: float, scores: list[float], stopped: int, best: int,
) -> None:  # fmt: skip
    given = scripted(monkeypatch, scores)
    config = one_task(tmp_path, tiny_model("llama"), early_stopping={"patience": 1})
    learn(config, f"method={{name: lori, share: 0.25, calibration: {calibration}}}")
    assert given == scores[:stopped]
    assert record(tmp_path / "run")["best_epoch"] == best
    factors = load_factors(tmp_path / "run/outputs/1-shades/adapter")
    Bs = torch.cat([f.B.flatten() for f in factors.values()])
    assert int(Bs.count_nonzero()) == pytest.approx(0.25 * len(Bs), rel=0.01)


@pytest.mark.parametrize(
    ("scores", "patience", "stopped", "best"),
    [
        ([50, 60, 55, 58, 59, 70], 2, 4, 2),
        ([50, 60, 55, 61, 59, 60], 2, 6, 4),
        ([50, 50, 50, 50, 50, 50], 1, 2, 1),
        ([10, 20, 30, 40, 50, 60], 1, 6, 6),
    ],
)
@pytest.mark.parametrize("model", ["llama", "t5"])
def test_the_best_epoch_is_committed(
    tmp_path: Path,
    tiny_model: TinyModel,
    monkeypatch: pytest.MonkeyPatch,
    scores: list[float],
    patience: int,
    stopped: int,
    best: int,
    model: str,
) -> None:
    """The adapter is that of a run that ends after the best epoch: nothing else depends on later epochs."""
    given = scripted(monkeypatch, scores)
    file = one_task(tmp_path, tiny_model(model), early_stopping={"patience": patience}, logging_steps=100)
    learn(file)
    assert given == scores[:stopped]
    found = record(tmp_path / "run")
    assert (found["best_epoch"], found["best_score"]) == (best, scores[best - 1])
    results = json.loads((tmp_path / "run/outputs/1-shades/train_results.json").read_text())
    assert results["epoch"] == stopped
    assert (results["train_best_epoch"], results["train_best_score"]) == (best, scores[best - 1])
    state = json.loads((tmp_path / "run/outputs/1-shades/trainer_state.json").read_text())
    assert [line["step"] for line in state["log_history"] if "loss" in line] == [1, 5 * stopped]

    given.clear()
    learn(file, f"train.epochs={best}", "train.early_stopping.patience=9", f"output_dir={tmp_path}/short")
    one, other = (
        load_factors(tmp_path / run / "outputs" / "1-shades" / "adapter") for run in ("run", "short")
    )
    for name, f in one.items():
        assert torch.equal(f.A, other[name].A)
        assert torch.equal(f.B, other[name].B)


@pytest.mark.parametrize("model", ["llama", "t5"])
def test_an_epoch_is_scored_as_its_committed_adapter_is(
    tmp_path: Path, tiny_model: TinyModel, model: str
) -> None:
    """Held out are a fifth of the training examples, stratified; their score is the one that the run itself gives."""
    file = one_task(
        tmp_path,
        tiny_model(model),
        epochs=4,
        learning_rate=2e-2,
        early_stopping={"patience": 9},
    )
    (task,) = make_plan(load_config(file)).tasks
    assert (len(task.train), len(task.validation), len(task.test)) == (19, 5, 9)
    assert {example.label for example in task.validation} == set(COLORS)
    assert not {example.sentence for example in task.validation} & {e.sentence for e in task.train}
    learn(file)
    rows = [{"sentence": example.sentence, "label": example.label} for example in task.validation]
    (tmp_path / "held.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    learned = record(tmp_path / "run")
    train = [{"sentence": example.sentence, "label": example.label} for example in task.train]
    (tmp_path / "rest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in train))
    again = learn(
        file,
        f"tasks.0.train={tmp_path}/rest.jsonl",
        f"tasks.0.test={tmp_path}/held.jsonl",
        "train.early_stopping=null",
        f"train.epochs={learned['best_epoch']}",
        f"output_dir={tmp_path}/again",
    )
    assert again.R[0][0] == learned["best_score"]


def test_half_an_epoch_is_scored_too(
    tmp_path: Path, tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = scripted(monkeypatch, [30, 40, 50])
    learn(one_task(tmp_path, tiny_model("llama"), epochs=1.5, early_stopping={"patience": 1}))
    assert given == [30, 40]
    assert record(tmp_path / "run")["best_epoch"] == 2


@pytest.mark.parametrize(
    ("override", "method", "said"),
    [
        ("train.early_stopping.patience=2", "seqft", "seqft trains the model's own weights"),
        ("train.early_stopping.patience=2", "osf", "osf trains the model's own weights"),
        ("train.early_stopping.patience=2", "mtl", "mtl trains on all tasks at once"),
        ("stages.animals.train.early_stopping.patience=2", "mtl", "stages.animals.train.early_stopping"),
        ("train.early_stopping.patience=0", "nlora", "must be a whole number >= 1, not 0"),
        ("train.early_stopping=3", "nlora", "must be a mapping of keys, or null, not 3"),
        ("train.early_stopping={}", "nlora", "train.early_stopping.patience: the key is missing"),
        ("train.load_best_model_at_end=true", "nlora", "use train.early_stopping: {patience: N}"),
    ],
)
def test_what_cannot_be_is_one_line(
    tmp_path: Path, tiny_model: TinyModel, override: str, method: str, said: str
) -> None:
    with pytest.raises(InputErrors) as error:
        make_plan(load_config(write_config(tmp_path, tiny_model("llama"), method=method), [override]))
    (problem,) = error.value.problems
    assert said in str(problem)
    assert len(str(problem).splitlines()) == 1


def test_too_few_examples_to_hold_any_out_are_refused(tmp_path: Path, tiny_model: TinyModel) -> None:
    task = write_task(tmp_path, "shades", COLORS, train=3)
    file = write_config(tmp_path, tiny_model("llama"), tasks=[task])
    with pytest.raises(InputErrors, match=r"too few to hold any out; leave train\.early_stopping out"):
        make_plan(load_config(file, ["train.early_stopping.patience=1"]))
