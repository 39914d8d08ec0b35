"""A task that is stopped half-trained resumes at its last saved step, and ends as if it had never stopped."""

from __future__ import annotations

import importlib
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import learn, write_config
from nlora.api.learn import learn as learn_run
from nlora.config.load import load_config
from nlora.runs.events import Event, Progress
from nlora.runs.resume_points import POINT_FILE
from nlora.training.penalized_trainer import PenalizedTrainer

TinyModel = Callable[[str], Path]
TRAIN = {"epochs": 3, "batch_size": 8, "learning_rate": 5e-3, "logging_steps": 2}  # 2 steps an epoch
DROPOUT = {"r": 4, "alpha": 8, "dropout": 0.1}


class Killed(BaseException):
    """Nothing in nlora catches it or saves anything because of it."""


@pytest.fixture
def differences(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, Path], list[str]]:
    """differences(run, other) -> the files that are not the same, times aside."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    found: Callable[[Path, Path], list[str]] = importlib.import_module("kill").differences
    return found


@contextmanager
def before_batch(number: int, action: Callable[[], None]) -> Iterator[None]:
    """A block in which something happens before the n-th micro-batch, counted over all tasks."""
    original, count = PenalizedTrainer.training_step, [0]

    def training_step(self: PenalizedTrainer, *args: Any, **kwargs: Any) -> torch.Tensor:
        count[0] += 1
        if count[0] == number:
            action()
        return original(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PenalizedTrainer, "training_step", training_step)
        yield


def die() -> None:
    raise Killed


def killed(config: Path, number: int, *overrides: str) -> None:
    with before_batch(number, die), pytest.raises(Killed):
        learn(config, *overrides)


def points(run: Path) -> list[str]:
    return sorted(str(path.relative_to(run / "resume")) for path in run.glob("resume/*/*"))


def said(config: Path, *overrides: str) -> list[str]:
    """The notes of a run that is learned to its end."""
    events: list[Event] = []
    learn_run(load_config(config, overrides), Progress(events.append))
    return [event.text for event in events if event.kind == "note"]


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {"lora": DROPOUT}),
        ("llama", {"lora": DROPOUT, "train": {**TRAIN, "batches": "random", "micro_batch_size": 2}}),
        ("llama", {"method": "ewc", "lora": DROPOUT}),
        ("llama", {"method": "lwf", "lora": DROPOUT, "train": {**TRAIN, "micro_batch_size": 4}}),
        ("llama", {"method": "disjoint"}),
        ("llama", {"method": "seqlora", "lora": DROPOUT}),
        ("llama", {"method": "replay", "lora": DROPOUT}),
        ("llama", {"method": "seqft", "train": {**TRAIN, "learning_rate": 1e-4}}),
        ("llama", {"method": "osf", "train": {**TRAIN, "learning_rate": 1e-4}}),
        ("llama", {"dtype": "bfloat16", "lora": DROPOUT, "train": {**TRAIN, "gradient_checkpointing": True}}),
        (
            "llama",
            {"train": {**TRAIN, "schedule": "cosine", "warmup_ratio": 0.3, "label_weights": "balanced"}},
        ),
        ("llama", {"lora": DROPOUT, "train": {**TRAIN, "early_stopping": {"patience": 1}, "epochs": 5}}),
        ("llama", {"lora": DROPOUT, "train": {**TRAIN, "epochs": 2.5}}),
        ("gpt2", {"lora": DROPOUT}),
        ("t5", {"lora": DROPOUT, "train": {**TRAIN, "micro_batch_size": 4}}),
    ],
    ids=str,
)
def test_a_task_that_was_killed_ends_like_one_that_was_not(
    tmp_path: Path,
    tiny_model: TinyModel,
    differences: Callable[[Path, Path], list[str]],
    family: str,
    changes: dict[str, Any],
) -> None:
    """Bit for bit: adapters, answers, losses and the log of the training. Killed in mid-epoch and after an epoch."""
    config = write_config(tmp_path, tiny_model(family), **{"train": TRAIN, **changes})
    learn(config, f"output_dir={tmp_path / 'whole'}", "train.save_every=null")
    target = f"output_dir={tmp_path / 'run'}"
    micro = 8 // (changes.get("train", TRAIN).get("micro_batch_size") or 8)
    killed(config, 3 * micro + 1, target, "train.save_every=1")  # 3 steps are saved, one and a half epochs
    assert points(tmp_path / "run") == ["1-colors/step-2", "1-colors/step-3"]
    killed(config, 2 * micro, target, "train.save_every=2")
    assert points(tmp_path / "run") == ["1-colors/step-3", "1-colors/step-4"]
    assert said(config, target)[-1]
    assert differences(tmp_path / "whole", tmp_path / "run") == []


def test_a_stage_that_is_committed_leaves_no_resume_points(tmp_path: Path, tiny_model: TinyModel) -> None:
    config = write_config(tmp_path, tiny_model("llama"), train=TRAIN)
    killed(config, 6 + 3, "train.save_every=1")
    assert points(tmp_path / "run") == ["2-animals/step-1", "2-animals/step-2"]
    notes = said(config)
    assert "stage 2: animals resumes after step 2 of 6" in notes
    assert not (tmp_path / "run/resume").exists()


def test_the_bar_of_a_resumed_task_starts_where_the_task_does(tmp_path: Path, tiny_model: TinyModel) -> None:
    config = write_config(tmp_path, tiny_model("llama"), train={**TRAIN, "save_every": 2})
    killed(config, 6)
    events: list[Event] = []
    learn_run(load_config(config), Progress(events.append))
    steps = [event.done for event in events if event.kind == "training" and event.stage == 1]
    assert steps == [4, 5, 6]


@pytest.mark.parametrize("file", ["tensors.safetensors", "values.json", "trainer_state.json", POINT_FILE])
def test_a_damaged_point_is_passed_over(
    tmp_path: Path,
    tiny_model: TinyModel,
    differences: Callable[[Path, Path], list[str]],
    file: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = write_config(tmp_path, tiny_model("llama"), train={**TRAIN, "save_every": 1})
    killed(config, 4)
    newest = tmp_path / "run/resume/1-colors/step-3" / file
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(bytes(content[:-1]))
    assert "stage 1: colors resumes after step 2 of 6" in said(config)
    assert f"{newest.parent}: not used, " in caplog.text
    learn(config, f"output_dir={tmp_path / 'whole'}")
    assert differences(tmp_path / "whole", tmp_path / "run") == []


def test_without_a_whole_point_the_task_starts_anew(tmp_path: Path, tiny_model: TinyModel) -> None:
    config = write_config(tmp_path, tiny_model("llama"), train={**TRAIN, "save_every": 1})
    killed(config, 3)
    for point in (tmp_path / "run/resume/1-colors").iterdir():
        (point / "values.json").unlink()
    assert not any("resumes after step" in line for line in said(config))


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("stages={animals: {train: {learning_rate: 0.001}}}", "train options"),
        ("stages={animals: {method: {weight: 0.5}}}", "method options"),
    ],
)
def test_a_point_of_other_options_is_not_used(
    tmp_path: Path,
    tiny_model: TinyModel,
    differences: Callable[[Path, Path], list[str]],
    override: str,
    named: str,
) -> None:
    """The options of a task that is not learned yet may change; what was trained with others does not count then."""
    config = write_config(tmp_path, tiny_model("llama"), train={**TRAIN, "save_every": 2})
    killed(config, 6 + 5)
    point = tmp_path / "run/resume/2-animals/step-4"
    notes = said(config, override)
    assert f"{point}: was made with other {named}, so the task is trained from its start" in notes
    learn(config, override, f"output_dir={tmp_path / 'whole'}")
    assert differences(tmp_path / "whole", tmp_path / "run") == []


def test_a_point_of_other_versions_or_earlier_stages_is_not_used(
    tmp_path: Path, tiny_model: TinyModel
) -> None:
    config = write_config(tmp_path, tiny_model("llama"), train={**TRAIN, "save_every": 2})
    killed(config, 6 + 5)
    run = tmp_path / "run"
    for name, value in (("versions", {"torch": "1.0"}), ("earlier stages", ["0" * 64])):
        file = run / "resume/2-animals/step-4" / POINT_FILE
        values = json.loads(file.read_text())
        values["made_with"][name] = value
        file.write_text(json.dumps(values))
    (line,) = [line for line in said(config) if "step-4" in line]
    assert "was made with other earlier stages and versions" in line


def test_what_may_change_at_any_time_may_change_in_mid_task(tmp_path: Path, tiny_model: TinyModel) -> None:
    config = write_config(tmp_path, tiny_model("llama"), train={**TRAIN, "save_every": 1})
    killed(config, 4)
    changed = ["train.micro_batch_size=4", "train.logging_steps=1", "train.save_every=10m"]
    assert "stage 1: colors resumes after step 3 of 6" in said(config, *changed)
    history = json.loads((tmp_path / "run/outputs/1-colors/trainer_state.json").read_text())["log_history"]
    assert [line["step"] for line in history if "loss" in line] == [1, 2, 4, 5, 6]


def test_the_seconds_of_all_processes_count(tmp_path: Path, tiny_model: TinyModel) -> None:
    config = write_config(tmp_path, tiny_model("llama"), train={**TRAIN, "save_every": 1})
    killed(config, 4)
    file = tmp_path / "run/resume/1-colors/step-3/values.json"
    text = file.read_text()
    before = float(text.partition('["seconds", ')[2].partition("]")[0])
    file.write_text(text.replace(f'["seconds", {before!r}]', f'["seconds", {before + 1000!r}]'))
    point = file.with_name(POINT_FILE)
    values = json.loads(point.read_text())
    values["files"]["values.json"] = _sha256(file)
    point.write_text(json.dumps(values))
    summary = learn(config)
    assert 1000 < summary.train_seconds[0] < 1000 + before + 500
    state = json.loads((tmp_path / "run/outputs/1-colors/trainer_state.json").read_text())
    last = state["log_history"][-1]
    assert last["train_runtime"] > 1000
    assert last["train_steps_per_second"] == pytest.approx(6 / last["train_runtime"], abs=1e-3)


def _sha256(file: Path) -> str:
    import hashlib

    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_a_full_disk_does_not_end_the_training(
    tmp_path: Path, tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_config(tmp_path, tiny_model("llama"), train={**TRAIN, "save_every": 3})

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("nlora.training.resumable_trainer.write_state", full)
    notes = said(config)
    assert sum("could not be saved, and training continues" in line for line in notes) == 2
    assert not list((tmp_path / "run").rglob(".tmp-*"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_ends_the_step_and_saves_it(
    tmp_path: Path,
    tiny_model: TinyModel,
    differences: Callable[[Path, Path], list[str]],
    number: signal.Signals,
) -> None:
    config = write_config(
        tmp_path, tiny_model("llama"), train=TRAIN, lora=DROPOUT
    )  # saved by the clock: never
    learn(config, f"output_dir={tmp_path / 'whole'}")
    # A shell starts what runs in its background with SIGINT ignored; a person's Ctrl-C is not.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with (
            before_batch(6 + 3, lambda: os.kill(os.getpid(), number)),
            pytest.raises(KeyboardInterrupt) as stopped,
        ):
            learn(config)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert str(stopped.value) == (
        f"{tmp_path / 'run'} keeps 1 of 2 stages, and step 3 of 6 of stage 2, animals; the same command resumes there"
    )
    assert points(tmp_path / "run") == ["2-animals/step-3"]
    learn(config)
    assert differences(tmp_path / "whole", tmp_path / "run") == []


def test_the_second_signal_stops_at_once(tmp_path: Path, tiny_model: TinyModel) -> None:
    config = write_config(tmp_path, tiny_model("llama"), train=TRAIN)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    try:
        with before_batch(3, twice), pytest.raises(KeyboardInterrupt):
            learn(config)
    finally:
        signal.signal(signal.SIGINT, before)
    assert points(tmp_path / "run") == []


def test_a_signal_in_the_last_step_keeps_the_trained_stage(tmp_path: Path, tiny_model: TinyModel) -> None:
    config = write_config(tmp_path, tiny_model("llama"), train=TRAIN)
    with (
        before_batch(6, lambda: os.kill(os.getpid(), signal.SIGTERM)),
        pytest.raises(KeyboardInterrupt) as stopped,
    ):
        learn(config)
    assert "stage 1, colors is trained; the same command resumes with its scoring" in str(stopped.value)


def test_a_run_in_another_thread_leaves_signals_alone(tmp_path: Path, tiny_model: TinyModel) -> None:
    config = write_config(tmp_path, tiny_model("llama"), train={**TRAIN, "save_every": 1})
    handlers = []
    with before_batch(1, lambda: handlers.append(signal.getsignal(signal.SIGTERM))):
        thread = threading.Thread(target=learn, args=(config,))
        thread.start()
        thread.join()
    assert handlers == [signal.getsignal(signal.SIGTERM)]
    assert (tmp_path / "run/report.html").exists()


METHOD = '''
"""Counts its steps."""

import torch

from nlora.methods.base import Method


class Counting(Method):
    steps = 0

    def penalty(self, adapter):
        self.steps += 1
        return 0.01 * self.steps * sum(f.B.pow(2).sum() for f in adapter.factors().values())

    def begin_task(self, adapter, earlier):
        self.steps = 0

    def state_dict(self):
        return {"steps": torch.tensor(self.steps)}

    def load_state_dict(self, state):
        self.steps = int(state["steps"])
'''


def test_a_method_may_have_a_state_that_changes_in_training(
    tmp_path: Path, tiny_model: TinyModel, differences: Callable[[Path, Path], list[str]]
) -> None:
    (tmp_path / "counting.py").write_text(METHOD)
    config = write_config(
        tmp_path, tiny_model("llama"), method=str(tmp_path / "counting.py"), train={**TRAIN, "save_every": 2}
    )
    learn(config, f"output_dir={tmp_path / 'whole'}")
    killed(config, 6)
    learn(config)
    assert differences(tmp_path / "whole", tmp_path / "run") == []


def test_a_run_that_was_killed_before_its_report_gets_it(tmp_path: Path, tiny_model: TinyModel) -> None:
    config = write_config(tmp_path, tiny_model("llama"), train=TRAIN)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nlora.api.finish.analyze_run", lambda folder: die())
        with pytest.raises(Killed):
            learn(config)
    learn(config)
    assert {"analysis.json", "report.html"} <= {path.name for path in (tmp_path / "run").iterdir()}
