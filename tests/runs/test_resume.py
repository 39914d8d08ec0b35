"""A task that is stopped half-trained resumes at its last saved step, and ends as if it had never stopped."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from helpers import COLORS, learn, write_config, write_task
from nlora.api.learn import learn as learn_run
from nlora.config.load import load_config
from nlora.config.train_options import TrainOptions
from nlora.runs import resumable, resume_points
from nlora.runs.events import Event, Progress
from nlora.runs.plan import make_plan
from nlora.runs.resume_points import POINT_FILE, StageResumePoints
from nlora.runs.signals import StopRequest, stopped_like_ctrl_c, stopped_on_request
from nlora.training.penalized_trainer import PenalizedTrainer

TinyModel = Callable[[str], Path]
Differences = Callable[[Path, Path], list[str]]
TRAIN = {"epochs": 3, "batch_size": 8, "learning_rate": 5e-3, "logging_steps": 2}  # 2 steps an epoch
DROPOUT = {"r": 4, "alpha": 8, "dropout": 0.1}


class Killed(BaseException):
    """Nothing in nlora catches it or saves anything because of it."""


@pytest.fixture
def differences(monkeypatch: pytest.MonkeyPatch) -> Differences:
    """differences(run, other) -> the files that are not the same, times aside."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    found: Differences = importlib.import_module("kill").differences
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


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_model: TinyModel) -> Path:
    """A folder with config.yaml, its finished run `whole`, and `half`, killed with 4 of 6 steps of stage 2 saved."""
    folder = tmp_path_factory.mktemp("resume")
    train = {**TRAIN, "save_every": 2}
    config = write_config(folder, tiny_model("llama"), train=train, lora=DROPOUT)
    learn(config, f"output_dir={folder / 'whole'}")
    killed(config, 6 + 6, f"output_dir={folder / 'half'}")
    assert points(folder / "half") == ["2-animals/step-2", "2-animals/step-4"]
    return folder


class Half:
    """A copy of the killed run."""

    def __init__(self, runs: Path, folder: Path) -> None:
        self.folder, self._config = folder, runs / "config.yaml"
        shutil.copytree(runs / "half", folder)

    def events(self, *overrides: str) -> list[Event]:
        """What happens when it is learned to its end."""
        events: list[Event] = []
        loaded = load_config(self._config, [f"output_dir={self.folder}", *overrides])
        learn_run(loaded, Progress(events.append))
        return events

    def notes(self, *overrides: str) -> list[str]:
        """What it says when it is learned to its end."""
        return [event.text for event in self.events(*overrides) if event.kind == "note"]

    def point(self, step: int) -> Path:
        return self.folder / "resume" / "2-animals" / f"step-{step}"

    def edit(self, step: int, **values: Any) -> None:
        """Change what a point says of itself."""
        file = self.point(step) / POINT_FILE
        point = json.loads(file.read_text()) | values
        del point["sha256"]
        file.write_text(json.dumps({**point, "sha256": resume_points._digest_of(point)}))


@pytest.fixture
def half(runs: Path, tmp_path: Path) -> Half:
    return Half(runs, tmp_path / "half")


def test_a_task_resumes_at_its_last_step_and_ends_as_if_it_had_not_stopped(
    runs: Path, half: Half, differences: Differences
) -> None:
    events = half.events()
    assert "stage 2: animals resumes after step 4 of 6" in [event.text for event in events]
    assert [event.done for event in events if event.kind == "training"] == [4, 5, 6]
    assert not (half.folder / "resume").exists()
    assert differences(runs / "whole", half.folder) == []


@pytest.mark.parametrize("method", ["ewc", "osf", "seqlora", "disjoint", "inflora", "gorp"])
def test_what_a_method_knows_of_earlier_tasks_is_there_again(
    tmp_path: Path, tiny_model: TinyModel, differences: Differences, method: str
) -> None:
    config = write_config(tmp_path, tiny_model("llama"), train={**TRAIN, "save_every": 1}, method=method)
    learn(config, f"output_dir={tmp_path / 'whole'}")
    killed(config, 6 + 4)
    learn(config)
    assert differences(tmp_path / "whole", tmp_path / "run") == []


@pytest.mark.parametrize("file", ["tensors.safetensors", POINT_FILE])
def test_a_damaged_point_is_passed_over(
    runs: Path, half: Half, differences: Differences, file: str, caplog: pytest.LogCaptureFixture
) -> None:
    damaged = half.point(4) / file
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    assert "stage 2: animals resumes after step 2 of 6" in half.notes()
    assert f"{damaged.parent}: not used, " in caplog.text
    assert differences(runs / "whole", half.folder) == []


def test_without_a_whole_point_the_task_starts_anew(runs: Path, half: Half, differences: Differences) -> None:
    for step in (2, 4):
        (half.point(step) / "values.json").unlink()
    assert not any("resumes after step" in line for line in half.notes())
    assert differences(runs / "whole", half.folder) == []


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("stages={animals: {train: {learning_rate: 0.001}}}", "train options"),
        ("stages={animals: {method: {weight: 0.5}}}", "method options"),
    ],
)
def test_a_point_of_other_options_is_not_used(half: Half, override: str, named: str) -> None:
    """The options of a task that is not learned yet may change; what was trained with others does not count then."""
    said = f"{half.point(4)}: was made with other {named}, so the task is trained from its start"
    notes = half.notes(override)
    assert said in notes
    assert not any("resumes after step" in line for line in notes)


@pytest.mark.parametrize("change", ["metric", "validation"])
def test_a_point_of_other_scores_is_not_used(tmp_path: Path, tiny_model: TinyModel, change: str) -> None:
    """With early stopping, the scores so far say which epoch is the best."""
    train = {**TRAIN, "save_every": 1, "early_stopping": {"patience": 3}}
    config = write_config(tmp_path, tiny_model("llama"), train=train)
    plan = make_plan(load_config(str(config)))
    held_out = {example.sentence for example in plan.tasks[1].validation}
    assert held_out
    killed(config, 6 + 2)
    values = yaml.safe_load(config.read_text())
    animals = values["tasks"][1]
    if change == "metric":
        animals["metric"] = "macro_f1"
    else:
        rows = [json.loads(line) for line in Path(animals["train"]).read_text().splitlines()]
        row = next(row for row in rows if row["sentence"] in held_out)
        row["sentence"] += " once more"
        Path(animals["train"]).write_text("".join(json.dumps(row) + "\n" for row in rows))
    config.write_text(yaml.safe_dump(values))
    assert any("was made with other ways of scoring" in note for note in said(config))


def test_a_point_of_other_versions_or_earlier_stages_is_not_used(half: Half) -> None:
    made_with = json.loads((half.point(4) / POINT_FILE).read_text())["made_with"]
    half.edit(4, made_with={**made_with, "versions": {"torch": "1.0"}, "earlier stages": ["0" * 64]})
    (line,) = [line for line in half.notes() if "step-4" in line]
    assert "was made with other earlier stages and versions, so" in line


def test_a_point_of_a_part_of_the_examples_is_not_used(half: Half) -> None:
    """As a try of `weight: auto` leaves it, which trains on fewer than the task has."""
    made_with = json.loads((half.point(4) / POINT_FILE).read_text())["made_with"]
    assert made_with["numbers of examples and steps"] == [16, 6]
    half.edit(4, made_with={**made_with, "numbers of examples and steps": [12, 6]})
    (line,) = [line for line in half.notes() if "step-4" in line]
    assert "was made with other numbers of examples and steps, so" in line


@pytest.mark.parametrize(
    ("family", "dropout", "matters"), [("llama", 0.1, False), ("llama", 0.0, False), ("gpt2", 0.0, True)]
)
def test_another_number_of_processes_matters_only_with_the_models_own_dropout(
    tmp_path: Path,
    tiny_model: TinyModel,
    monkeypatch: pytest.MonkeyPatch,
    family: str,
    dropout: float,
    matters: bool,
) -> None:
    lora = {**DROPOUT, "dropout": dropout}
    tasks = [write_task(tmp_path, "colors", COLORS)]
    config = write_config(
        tmp_path, tiny_model(family), train={**TRAIN, "save_every": 2}, lora=lora, tasks=tasks
    )
    killed(config, 4)
    monkeypatch.setattr(resumable, "processes", SimpleNamespace(size=lambda: 2))
    notes = said(config)
    assert any("made with other numbers of processes" in line for line in notes) == matters
    assert ("stage 1: colors resumes after step 2 of 6" in notes) != matters


def test_what_may_change_at_any_time_may_change_in_mid_task(half: Half) -> None:
    notes = half.notes("train.micro_batch_size=4", "train.logging_steps=1", "train.save_every=10m")
    assert "stage 2: animals resumes after step 4 of 6" in notes
    state = json.loads((half.folder / "outputs/2-animals/trainer_state.json").read_text())
    assert [line["step"] for line in state["log_history"] if "loss" in line] == [1, 2, 4, 5, 6]


def test_the_seconds_of_all_processes_count(half: Half) -> None:
    file = half.point(4) / "values.json"
    text = file.read_text()
    before = text.partition('["seconds", ')[2].partition("]")[0]
    file.write_text(text.replace(f'["seconds", {before}]', '["seconds", 1000.0]'))
    digests = json.loads((half.point(4) / POINT_FILE).read_text())["files"]
    half.edit(4, files={**digests, "values.json": hashlib.sha256(file.read_bytes()).hexdigest()})
    half.notes()
    stage = half.folder / "outputs/2-animals"
    seconds = json.loads((stage / "stage.json").read_text())["train_seconds"]
    assert seconds > 1000
    last = json.loads((stage / "trainer_state.json").read_text())["log_history"][-1]
    assert 1000 < last["train_runtime"] <= seconds
    assert last["train_steps_per_second"] == pytest.approx(6 / last["train_runtime"], abs=1e-3)


def test_a_full_disk_does_not_end_the_training(half: Half, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("nlora.training.resumable_trainer.write_state", full)
    notes = half.notes("train.save_every=5")
    (line,) = [line for line in notes if "could not be saved, and training continues" in line]
    assert "No space left on device" in line
    assert (half.folder / "report.html").exists()


def test_a_signal_ends_the_step_and_saves_it(runs: Path, half: Half, differences: Differences) -> None:
    with (
        before_batch(1, lambda: os.kill(os.getpid(), signal.SIGTERM)),
        stopped_like_ctrl_c(),
        pytest.raises(KeyboardInterrupt) as stopped,
    ):
        half.events("train.save_every=10m")
    assert str(stopped.value) == (
        f"{half.folder} keeps 1 of 2 stages, and 5 of 6 steps of stage 2, animals; the same command resumes there"
    )
    assert points(half.folder) == ["2-animals/step-4", "2-animals/step-5"]
    half.events()
    assert differences(runs / "whole", half.folder) == []


@pytest.mark.parametrize(("again", "saved"), [(signal.SIGTERM, [4, 5]), (signal.SIGINT, [2, 4])])
def test_ctrl_c_after_a_signal_stops_at_once(half: Half, again: signal.Signals, saved: list[int]) -> None:
    def twice() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), again)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background
    try:
        with before_batch(1, twice), stopped_like_ctrl_c(), pytest.raises(KeyboardInterrupt):
            half.events()
    finally:
        signal.signal(signal.SIGINT, before)
    assert points(half.folder) == [f"2-animals/step-{step}" for step in saved]


def test_a_signal_in_the_last_step_keeps_the_trained_stage(half: Half) -> None:
    with (
        before_batch(2, lambda: os.kill(os.getpid(), signal.SIGTERM)),
        pytest.raises(KeyboardInterrupt) as stopped,
    ):
        half.events()
    assert "stage 2, animals is trained; the same command resumes with its scoring" in str(stopped.value)


def test_if_nothing_is_saved_a_signal_stops_at_once(half: Half) -> None:
    interrupted = []

    def interrupt() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except KeyboardInterrupt:
            interrupted.append(True)
            raise

    with before_batch(1, interrupt), stopped_like_ctrl_c(), pytest.raises(KeyboardInterrupt):
        half.events("train.save_every=null")
    assert interrupted


def test_a_run_in_another_thread_leaves_signals_alone(half: Half) -> None:
    handlers = []
    with before_batch(1, lambda: handlers.append(signal.getsignal(signal.SIGTERM))):
        thread = threading.Thread(target=half.events)
        thread.start()
        thread.join()
    assert handlers == [signal.getsignal(signal.SIGTERM)]
    assert (half.folder / "report.html").exists()


TERM, USR1, INT = signal.SIGTERM, signal.SIGUSR1, signal.SIGINT


@pytest.mark.parametrize(
    ("passed_on", "at_once"),
    [
        ([INT], INT),
        ([INT], TERM),  # a launcher's second Ctrl-C
        ([TERM], INT),
        ([TERM, TERM, USR1, signal.SIGHUP], INT),  # Slurm's and a launcher's, for one stop
        ([USR1, TERM], INT),
    ],
)
def test_a_stop_that_is_passed_on_is_one_request_and_ctrl_c_after_it_stops_at_once(
    passed_on: list[signal.Signals], at_once: signal.Signals
) -> None:
    # A shell starts what runs in its background with SIGINT ignored; a person's Ctrl-C is not.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    made = []

    def asked_again() -> None:
        with stopped_like_ctrl_c(), stopped_on_request() as request:
            for number in passed_on:
                os.kill(os.getpid(), number)
                made.append(request.is_made)
            os.kill(os.getpid(), at_once)
            made.append("not stopped at once")

    def asked_once() -> None:
        with stopped_like_ctrl_c(), stopped_on_request():
            os.kill(os.getpid(), passed_on[0])  # a request that nobody saw

    try:
        for asked in (asked_again, asked_once):
            with pytest.raises(KeyboardInterrupt):
                asked()
        assert made == [True] * len(passed_on)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_handlers_of_others_are_kept() -> None:
    taken: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: taken.append(number))
    try:
        with stopped_on_request() as request:
            os.kill(os.getpid(), signal.SIGUSR1)
        assert (taken, request.is_made) == ([signal.SIGUSR1], False)
    finally:
        signal.signal(signal.SIGUSR1, before)


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
    tmp_path: Path, tiny_model: TinyModel, differences: Differences
) -> None:
    (tmp_path / "counting.py").write_text(METHOD)
    tasks = [write_task(tmp_path, "colors", COLORS)]
    train = {**TRAIN, "save_every": 2}
    config = write_config(
        tmp_path, tiny_model("llama"), method=str(tmp_path / "counting.py"), train=train, tasks=tasks
    )
    learn(config, f"output_dir={tmp_path / 'whole'}")
    killed(config, 6)
    learn(config)
    assert differences(tmp_path / "whole", tmp_path / "run") == []


def test_a_run_that_was_killed_before_its_report_gets_it(half: Half) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nlora.api.finish.analyze_run", lambda folder: die())
        with pytest.raises(Killed):
            half.events()
    half.events()
    assert {"analysis.json", "report.html"} <= {path.name for path in half.folder.iterdir()}


def test_a_page_of_fewer_stages_does_not_outlive_them(tmp_path: Path, tiny_model: TinyModel) -> None:
    """A run that was extended, and killed before its new report."""
    tasks = [write_task(tmp_path, name, COLORS) for name in ("colors", "shades")]
    learn(write_config(tmp_path, tiny_model("llama"), tasks=tasks[:1]))
    config, page = write_config(tmp_path, tiny_model("llama"), tasks=tasks), tmp_path / "run" / "report.html"
    assert "shades" not in page.read_text()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nlora.api.finish.analyze_run", lambda folder: die())
        with pytest.raises(Killed):
            learn(config)
    assert not page.exists()
    summary = learn(config)
    assert "shades" in page.read_text()
    assert summary.collision is not None


def test_a_repair_of_earlier_answers_keeps_what_is_half_trained(
    runs: Path, half: Half, differences: Differences
) -> None:
    answers = half.folder / "outputs" / "1-colors" / "predict_eval_predictions.jsonl"
    answers.write_bytes(answers.read_bytes()[:-20])
    events: list[Event] = []
    loaded = load_config(runs / "config.yaml", [f"output_dir={half.folder}"])
    learn_run(loaded, Progress(events.append), repair=True)
    assert "stage 2: animals resumes after step 4 of 6" in [event.text for event in events]
    shutil.rmtree(half.folder / "damaged")
    assert differences(runs / "whole", half.folder) == []


def test_a_trained_stage_does_not_outlive_the_one_before_it(tmp_path: Path, tiny_model: TinyModel) -> None:
    """The third was trained and not scored yet; then the second was deleted."""
    tasks = [write_task(tmp_path, name, COLORS, train=8, test=3) for name in ("a", "b", "c")]
    loaded = load_config(write_config(tmp_path, tiny_model("llama"), tasks=tasks))

    def stop(event: Event) -> None:
        if event.stage == 3 and event.kind == "scoring":
            raise Killed

    with pytest.raises(Killed):
        learn_run(loaded, Progress(stop))
    shutil.rmtree(tmp_path / "run/outputs/2-b")
    events: list[Event] = []
    learn_run(loaded, Progress(events.append))
    assert {event.stage for event in events if event.kind == "training"} == {2, 3}


def test_a_stage_is_in_the_folder_when_it_is_said_to_be_done(tmp_path: Path, tiny_model: TinyModel) -> None:
    import nlora

    config, found = write_config(tmp_path, tiny_model("llama")), []

    def look(event: Event) -> None:
        if event.kind == "stage_done":
            run = nlora.open_run(tmp_path / "run")
            found.append([stage.number for stage in run.stages])
            if event.stage == 1:
                raise Killed

    with pytest.raises(Killed):
        nlora.run(config, on_event=look)
    assert found == [[1]]
    events: list[Event] = []
    nlora.run(config, on_event=events.append)
    assert [event.stage for event in events if event.kind == "stage_done"] == [2]
    assert not [event for event in events if event.kind == "training" and event.stage == 1]


def test_saving_by_the_clock_takes_at_most_a_hundredth_of_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(resume_points.time, "monotonic", lambda: now[0])
    options = TrainOptions(save_every="10m")
    stage = StageResumePoints(tmp_path, 100, options, {}, StopRequest(), lambda line: None)

    def takes_20_seconds(folder: Path) -> None:
        (folder / "file").write_text("state")
        now[0] += 20

    due = []
    for step in range(1, 100):
        now[0] += 60
        if stage.is_due(step):
            due.append(step)
            stage.write(step, takes_20_seconds)
    assert due == [10, 44, 78]  # after 600 s; then every 2,000 s


def test_by_steps_it_is_saved_whatever_it_takes(tmp_path: Path) -> None:
    options = TrainOptions(save_every=3)
    stage = StageResumePoints(tmp_path, 100, options, {}, StopRequest(), lambda line: None)
    assert [step for step in range(1, 10) if stage.is_due(step)] == [3, 6, 9]
