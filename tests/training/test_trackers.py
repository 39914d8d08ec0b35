"""TensorBoard, W&B and Trackio get one run, whose steps continue from stage to stage and when a run resumes."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from helpers import learn, write_config
from nlora.api.learn import learn as learn_run
from nlora.config.load import load_config
from nlora.runs.events import Event, Progress
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


def init(project, name, id=None, resume=None):
    global run
    run = Run(name)
    told.append(("init", project, name, id, resume))


def log(values):
    told.append(("log", run.name, values["train/global_step"]))


def define_metric(*names, **options): ...


def finish():
    global run
    told.append(("finish", run.name))
    run = None
"""
TRACKIO = """
from types import SimpleNamespace

__version__, told, config = "1.0", [], {}
context_vars = SimpleNamespace(current_space_id=SimpleNamespace(get=lambda: "me/space"))


class Config(dict):
    def update(self, values, allow_val_change=False): ...


config = Config()


def init(project, name, resume, **options):
    told.append(("init", name, resume))


def log(values):
    told.append(("log", values["train/global_step"]))


def finish():
    told.append(("finish",))


def freeze(**options):
    told.append(("freeze",))
"""


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Packages with the names of W&B and Trackio, which keep what they receive."""
    lib = tmp_path / "packages/wandb/sdk/lib"
    lib.mkdir(parents=True)
    for folder, text in ((lib.parents[1], WANDB), (lib.parent, ""), (lib, "")):
        (folder / "__init__.py").write_text(text)
    (lib / "config_util.py").write_text("class ConfigError(Exception): ...")
    (tmp_path / "packages/trackio.py").write_text(TRACKIO)
    monkeypatch.syspath_prepend(str(tmp_path / "packages"))
    for name in ("WANDB_RUN_ID", "WANDB_RESUME", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)

    def forget() -> None:
        for name in [n for n in sys.modules if n.split(".")[0] in ("wandb", "trackio")]:
            del sys.modules[name]

    forget()
    yield
    forget()


def train_a_stage(tracker: str, run: str, run_id: str, steps_before: int) -> None:
    """What the Trainer tells its callbacks in a stage of five steps."""
    (callback,) = trackers([tracker], Path(run), run_id=run_id, steps_before=steps_before)
    args = TrainingArguments(output_dir="out", report_to="none")
    state, control = TrainerState(), TrainerControl()
    callback.on_train_begin(args, state, control)
    for step in (1, 5):
        state.global_step = step
        callback.on_log(args, state, control, logs={"loss": 1.0})
    callback.on_train_end(args, state, control)
    assert state.global_step == 5  # the Trainer's own count


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


@pytest.mark.usefixtures("fakes")
def test_wandb_has_one_run_for_each_run() -> None:
    for run, run_id in (("a", "1f"), ("b", "2e")):
        with one_wandb_run():
            for stage in range(2):
                train_a_stage("wandb", run, run_id, 5 * stage)
    assert sys.modules["wandb"].told == [
        event
        for run, run_id in (("a", "1f"), ("b", "2e"))
        for event in (
            ("init", "huggingface", run, run_id, "allow"),
            *(("log", run, step) for step in (1, 5, 6, 10)),
            ("finish", run),
        )
    ]


@pytest.mark.usefixtures("fakes")
def test_only_the_main_process_opens_a_wandb_run() -> None:
    (callback,) = trackers(["wandb"], Path("a"), run_id="1f", steps_before=0)
    args = TrainingArguments(output_dir="out", report_to="none")
    callback.on_train_begin(args, TrainerState(is_world_process_zero=False), TrainerControl())
    assert not getattr(sys.modules.get("wandb"), "told", [])


@pytest.mark.usefixtures("fakes")
@pytest.mark.parametrize("name", ["WANDB_RUN_ID", "WANDB_RESUME"])
def test_a_wandb_run_that_the_user_chose_is_left_to_the_callback(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "auto")
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    train_a_stage("wandb", "a", "1f", 0)
    assert sys.modules["wandb"].told[0] == ("init", "mine", "a", None, None)


@pytest.mark.usefixtures("fakes")
def test_trackio_resumes_one_run_in_every_stage() -> None:
    """By its name, which therefore has the id; and it publishes no frozen copy of a Space after a stage."""
    for stage in range(2):
        train_a_stage("trackio", "a", "1f", 5 * stage)
    assert sys.modules["trackio"].told == [
        ("init", "a 1f", "allow"), ("log", 1), ("log", 5), ("finish",),
        ("init", "a 1f", "allow"), ("log", 6), ("log", 10), ("finish",),
    ]  # fmt: skip


@pytest.mark.usefixtures("fakes")
def test_a_run_that_resumes_goes_on_in_its_own_run(tmp_path: Path, tiny_model: Callable[[str], Path]) -> None:
    """Stopped after its first stage, and resumed as another process would; then anew in an emptied folder."""
    train = {"epochs": 1, "batch_size": 8, "logging_steps": 1, "report_to": ["wandb"]}
    config = write_config(tmp_path, tiny_model("llama"), train=train)

    def stop(event: Event) -> None:
        if event.kind == "stage_done":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learn_run(load_config(config), Progress(stop))
    learn(config)
    shutil.rmtree(tmp_path / "run")
    learn(config)
    told = sys.modules["wandb"].told
    first, resumed, anew = (event[3] for event in told if event[0] == "init")
    assert first == resumed != anew
    assert anew == (tmp_path / "run/logs/tracker_id").read_text().strip()
    steps = [event[2] for event in told if event[0] == "log"]
    assert sorted(set(steps)) == [1, 2, 3, 4]
    assert steps[: len(steps) // 2] == steps[len(steps) // 2 :] == sorted(steps[: len(steps) // 2])


def test_without_trackers_a_run_keeps_no_id(tmp_path: Path, tiny_model: Callable[[str], Path]) -> None:
    learn(write_config(tmp_path, tiny_model("llama"), train={"epochs": 1}))
    assert not (tmp_path / "run/logs/tracker_id").exists()
