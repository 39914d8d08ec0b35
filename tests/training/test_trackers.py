"""TensorBoard and W&B get one run, whose steps continue from stage to stage."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from helpers import learn, write_config
from nlora.training.trackers import one_wandb_run, trackers

WANDB = """
run, told = None, []


class Run:
    def __init__(self, name):
        self.name, self.summary = name, {}

    def _label(self, **values): ...


class Config(dict):
    def update(self, values, allow_val_change=False): ...


config = Config()


def init(project, name):
    global run
    run = Run(name)
    told.append(("init", name))


def log(values):
    told.append(("log", run.name, values["train/global_step"]))


def define_metric(*names, **options): ...


def finish():
    global run
    told.append(("finish", run.name))
    run = None
"""


def test_tensorboard_has_one_run_whose_steps_continue(
    tmp_path: Path, tiny_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    train = {
        "epochs": 2,
        "batch_size": 4,
        "learning_rate": 5e-3,
        "report_to": ["tensorboard"],
        "logging_steps": 3,
    }
    learn(write_config(tmp_path, tiny_model("llama"), train=train))
    assert {file.parent for file in tmp_path.rglob("events.*")} == {tmp_path / "run/logs/tensorboard"}
    events = accumulator.EventAccumulator(str(tmp_path / "run/logs/tensorboard")).Reload()
    losses = {event.step: event.value for event in events.Scalars("train/loss")}
    assert list(losses) == [1, 3, 6, 8, 9, 11, 14, 16]  # two stages of 8 steps
    second = json.loads((tmp_path / "run/outputs/2-animals/trainer_state.json").read_text())["log_history"]
    assert [losses[8 + line["step"]] for line in second if "loss" in line] == pytest.approx(
        [line["loss"] for line in second if "loss" in line]
    )


def test_wandb_has_one_run_for_each_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "wandb"
    (package / "sdk" / "lib").mkdir(parents=True)
    (package / "__init__.py").write_text(WANDB)
    (package / "sdk" / "__init__.py").touch()
    (package / "sdk" / "lib" / "__init__.py").touch()
    (package / "sdk" / "lib" / "config_util.py").write_text("class ConfigError(Exception): ...")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [n for n in sys.modules if n.split(".")[0] == "wandb"]:
        monkeypatch.delitem(sys.modules, name)
    try:
        for run in ("a", "b"):
            with one_wandb_run():
                for stage in range(2):
                    (callback,) = trackers(["wandb"], Path(run), steps_before=5 * stage)
                    args = TrainingArguments(output_dir=str(tmp_path / "out"), report_to="none")
                    state, control = TrainerState(), TrainerControl()
                    callback.on_train_begin(args, state, control)
                    for step in (1, 5):
                        state.global_step = step
                        callback.on_log(args, state, control, logs={"loss": 1.0})
                    callback.on_train_end(args, state, control)
                    assert state.global_step == 5  # the Trainer's own count
        steps = [1, 5, 6, 10]
        assert sys.modules["wandb"].told == [
            event
            for run in ("a", "b")
            for event in (("init", run), *(("log", run, step) for step in steps), ("finish", run))
        ]
    finally:
        for name in [n for n in sys.modules if n.split(".")[0] == "wandb"]:
            del sys.modules[name]
