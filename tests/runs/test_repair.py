"""Damaged files of a run: one line that names the file, and `--repair`, which does only that part again."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from helpers import ANIMALS, COLORS, learn, same_outcome, write_config, write_task
from nlora.api.learn import learn as learn_run
from nlora.config.load import load_config
from nlora.errors import RunError
from nlora.runs import sequence, stage_training
from nlora.runs.checksums import Checksums, damage, read_checksums, weights_digest, write_checksums
from nlora.runs.events import Progress
from nlora.runs.repair import Repair
from nlora.runs.summary import Summary, read_summary

TinyModel = Callable[[str], Path]
ADAPTER = "adapter/adapter_model.safetensors"
PREDICTIONS = "predict_eval_predictions.jsonl"
STAGES = ("1-colors", "2-animals", "3-shades")


class Counted:
    """How many stages were trained."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        train = stage_training.train

        def counting(*args: Any, **kwargs: Any) -> Any:
            self.count += 1
            return train(*args, **kwargs)

        monkeypatch.setattr(stage_training, "train", counting)


@pytest.fixture
def trainings(three_tasks: Any, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Counted:
    """From when the test's run is made."""
    method = getattr(request.node, "callspec", None)
    three_tasks(method.params.get("method", "nlora") if method else "nlora")
    return Counted(monkeypatch)


@pytest.fixture(scope="session")
def three_tasks(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: TinyModel
) -> Callable[[str], tuple[Path, Path]]:
    """make(method) -> a configuration of three small tasks and the folder of its finished run; do not change it."""
    made: dict[str, tuple[Path, Path]] = {}

    def make(method: str) -> tuple[Path, Path]:
        if method not in made:
            folder = tmp_path_factory.mktemp("damaged")
            tasks = [
                write_task(folder, name, labels, train=8, test=4)
                for name, labels in (("colors", COLORS), ("animals", ANIMALS), ("shades", ("dark", "pale")))
            ]
            train = {"epochs": 1, "batch_size": 4, "learning_rate": 5e-3}
            config = write_config(folder, tiny_model("llama"), method=method, tasks=tasks, train=train)
            learn(config)
            made[method] = config, folder / "run"
        return made[method]

    return make


def copy_of(made: tuple[Path, Path], to: Path) -> tuple[Path, Path]:
    shutil.copytree(made[1], to / "run")
    return made[0], to / "run"


def repaired(config: Path, run: Path) -> tuple[Summary, list[str]]:
    """The summary, and what was said about stages."""
    lines: list[str] = []
    loaded = load_config(config, [f"output_dir={run}"])
    summary = learn_run(loaded, Progress(lambda event: lines.append(str(event))), repair=True)
    return summary, [line for line in lines if line.startswith("stage") and "again" in line]


def files(run: Path) -> dict[str, bytes]:
    """Everything that the stages hold, but for times."""
    names = (ADAPTER, PREDICTIONS, "weights.safetensors", "memory.safetensors")
    found = {str(p.relative_to(run)): p.read_bytes() for name in names for p in run.glob(f"outputs/*/{name}")}
    assert len(found) >= 6
    return found


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def edited(path: Path) -> None:
    """Another number in an adapter that can still be read."""
    tensors = load_file(path)
    first = next(iter(tensors))
    tensors[first] = tensors[first] + 1
    save_file(tensors, path, metadata={"format": "pt"})


def test_checksums_cover_what_later_steps_depend_on(three_tasks: Any) -> None:
    _, run = three_tasks("nlora")
    for stage in STAGES:
        sums = read_checksums(run / "outputs" / stage)
        assert sums is not None
        assert set(sums.files) == {ADAPTER, "adapter/adapter_config.json", PREDICTIONS, "stage.json"}
        assert damage(run / "outputs" / stage, is_last=True) == []
    digests = [weights_digest(run / "outputs" / stage) for stage in STAGES]
    assert len(set(digests)) == 3
    after = [(read_checksums(run / "outputs" / stage) or Checksums(files={})).after for stage in STAGES]
    assert after == [None, *digests[:2]]


def test_sums_of_weights_are_those_of_the_end_of_training(tmp_path: Path) -> None:
    (tmp_path / "weights.safetensors").write_bytes(b"trained")
    write_checksums(tmp_path)
    (tmp_path / "weights.safetensors").write_bytes(b"damaged")
    (tmp_path / "stage.json").write_text("scored")
    write_checksums(tmp_path, after="x")
    (found,) = damage(tmp_path, is_last=True)
    assert (found.path.name, found.part) == ("weights.safetensors", "weights")
    (tmp_path / "checksums.json").write_text("{")
    with pytest.raises(RunError, match=r"checksums\.json: broken; delete it"):
        damage(tmp_path, is_last=True)


@pytest.mark.parametrize("harm", [cut, edited, Path.unlink])
def test_a_damaged_adapter_is_named_by_all_who_read_it(
    tmp_path: Path, three_tasks: Any, nlora: Callable[..., Any], harm: Callable[[Path], None]
) -> None:
    config, run = copy_of(three_tasks("nlora"), tmp_path)
    path = run / "outputs/2-animals" / ADAPTER
    harm(path)
    commands: list[tuple[Any, ...]] = [("run", config, f"output_dir={run}"), ("analyze", run)]
    if harm is edited:
        commands += [("eval", run), ("export", run, tmp_path / "out", "--as", "adapter")]
    for command in commands:
        told = nlora(*command)
        assert told.status == 2, told.err
        assert str(path) in told.err
        assert "--repair" in told.err
        assert told.err.count("\n") == 1
    if harm is edited:  # what does not need it works
        assert nlora("eval", run, "--stage", 1).status == 0
        assert nlora("report", run).status == 0
        assert nlora("gate", run, "--max-drop", 100).status == 0


@pytest.mark.parametrize("method", ["ewc", "inflora", "gorp"])
def test_answers_of_a_stage_whose_memory_was_let_go_are_only_made_again(
    tmp_path: Path, three_tasks: Any, trainings: Counted, method: str
) -> None:
    """The later stages were trained on top of the same weights as before."""
    config, run = copy_of(three_tasks(method), tmp_path)
    with (run / "outputs/1-colors" / PREDICTIONS).open("a") as file:
        file.write("\n")
    _, said = repaired(config, run)
    assert [line.partition(":")[0] for line in said] == ["stage 1"]
    assert trainings.count == 0
    assert files(run) == files(three_tasks(method)[1])


def test_edited_answers_are_not_compared_and_are_made_again(
    tmp_path: Path, three_tasks: Any, nlora: Callable[..., Any], trainings: Counted
) -> None:
    config, run = copy_of(three_tasks("nlora"), tmp_path)
    path = run / "outputs/2-animals" / PREDICTIONS
    path.write_text(path.read_text().replace("the", "teh"))
    told = nlora("gate", run, "--max-drop", 100)
    assert (told.status, str(path) in told.err, "scored again" in told.err) == (2, True, True)
    summary, said = repaired(config, run)
    assert [line.partition(":")[0] for line in said] == ["stage 2"]
    assert "is scored again" in said[0]
    assert trainings.count == 0
    assert files(run) == files(three_tasks("nlora")[1])
    assert same_outcome(summary, read_summary(three_tasks("nlora")[1]))
    assert "teh" in (run / "damaged/2-animals" / PREDICTIONS).read_text()


# Two of three stages of ewc must be trained: the second one needs what the first remembered, which is kept no longer.
@pytest.mark.parametrize(("method", "expected"), [("nlora", 1), ("pertask", 1), ("osf", 1), ("ewc", 2)])
def test_only_the_damaged_stage_is_trained_again(
    tmp_path: Path, three_tasks: Any, trainings: Counted, method: str, expected: int
) -> None:
    config, run = copy_of(three_tasks(method), tmp_path)
    name = "weights.safetensors" if method == "osf" else ADAPTER
    cut(run / "outputs/2-animals" / name)
    summary, said = repaired(config, run)
    assert trainings.count == len(said) == expected
    assert files(run) == files(three_tasks(method)[1])
    assert same_outcome(summary, read_summary(three_tasks(method)[1]))
    assert (run / "damaged/2-animals" / name).exists()
    trainings.count = 0
    assert (repaired(config, run)[1], trainings.count) == ([], 0)


def test_a_repair_says_what_it_does(tmp_path: Path, three_tasks: Any, nlora: Callable[..., Any]) -> None:
    config, run = copy_of(three_tasks("nlora"), tmp_path)

    def told() -> list[str]:
        done = nlora("run", config, f"output_dir={run}", "--repair")
        assert done.status == 0, done.err
        return [line for line in done.out.splitlines() if re.search("resuming|repairs|learns", line)]

    (run / "outputs/1-colors" / PREDICTIONS).write_text("{}\n")
    [said] = told()
    assert re.search(r": nlora repairs 1 stage on \S+$", said)  # no time: nothing is trained
    cut(run / "outputs/2-animals" / ADAPTER)
    shutil.rmtree(run / "outputs/3-shades")
    [said] = told()
    assert re.search(r": nlora repairs 1 stage and learns 1 more task on \S+, about .*$", said)


@pytest.mark.parametrize(("method", "trained"), [("nlora", 2), ("pertask", 1)])
def test_stages_on_top_of_other_weights_are_done_again(
    tmp_path: Path,
    three_tasks: Any,
    trainings: Counted,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    trained: int,
) -> None:
    """As on another machine: the second stage comes out differently."""
    config, run = copy_of(three_tasks(method), tmp_path)
    cut(run / "outputs/2-animals" / ADAPTER)
    monkeypatch.setattr(stage_training, "stage_seed", lambda seed, stage: 99)
    _, said = repaired(config, run)
    again = "trained" if method == "nlora" else "scored"
    assert [line.partition(":")[0] for line in said] == ["stage 2", "stage 3"]
    assert f"an earlier stage has other weights now; the stage is {again} again" in said[1]
    assert trainings.count == trained
    assert (
        files(run)["outputs/1-colors/" + ADAPTER]
        == files(three_tasks(method)[1])["outputs/1-colors/" + ADAPTER]
    )
    assert learn(config, f"output_dir={run}").status == "complete"


def test_a_repair_that_is_killed_goes_on(
    tmp_path: Path, three_tasks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, run = copy_of(three_tasks("nlora"), tmp_path)
    cut(run / "outputs/1-colors" / ADAPTER)
    (run / "outputs/2-animals/stage.json").write_text("{}")

    def killed(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    for module, place in ((stage_training, "train"), (sequence, "write_stage")):
        with monkeypatch.context() as patch:
            patch.setattr(module, place, killed)
            with pytest.raises(KeyboardInterrupt):
                repaired(config, run)
        with pytest.raises(RunError, match="--repair"):
            learn(config, f"output_dir={run}")
    summary, _ = repaired(config, run)
    assert files(run) == files(three_tasks("nlora")[1])
    assert same_outcome(summary, read_summary(three_tasks("nlora")[1]))


ALONE = """from nlora.methods.base import Method, MethodOptions

class Alone(Method[MethodOptions]):
    updates = "per_task"
"""


@pytest.mark.parametrize(
    ("method", "again"), [("nlora", "trained"), ("pertask", "scored"), (ALONE, "scored")]
)
def test_a_repair_that_ends_between_two_stages_is_not_called_whole(
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    three_tasks: Any,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    again: str,
) -> None:
    """The third stage is still there, trained after a second one that is no more."""
    if method == ALONE:  # a method from outside says itself whether its stages depend on one another
        method = str(tmp_path_factory.mktemp("method") / "alone.py")
        Path(method).write_text(ALONE)
    config, run = copy_of(three_tasks(method), tmp_path)
    cut(run / "outputs/2-animals" / ADAPTER)
    prepare = Repair.prepare

    def killed(self: Repair, stage: int) -> None:
        if stage == 3:
            raise KeyboardInterrupt
        prepare(self, stage)

    with monkeypatch.context() as patch:
        patch.setattr(stage_training, "stage_seed", lambda seed, stage: 99)  # as on another machine
        patch.setattr(Repair, "prepare", killed)
        with pytest.raises(KeyboardInterrupt):
            repaired(config, run)
    with pytest.raises(
        RunError, match=r"3-shades: was trained after other weights of stage 2 than it has now.*--repair"
    ):
        learn(config, f"output_dir={run}")
    _, said = repaired(config, run)
    assert len(said) == 1
    assert said[0].startswith("stage 3: ")
    assert f"the stage is {again} again" in said[0]
    assert learn(config, f"output_dir={run}").status == "complete"


@pytest.mark.parametrize("file", ["checksums.json", ADAPTER])
def test_a_file_that_may_not_be_read_is_not_called_damaged(
    tmp_path: Path, three_tasks: Any, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    config, run = copy_of(three_tasks("nlora"), tmp_path)
    open_file, path = io.open, run / "outputs/1-colors" / file

    def refusing(name: Any, *args: Any, **kwargs: Any) -> Any:
        if Path(str(name)) == path:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(name))
        return open_file(name, *args, **kwargs)

    monkeypatch.setattr(io, "open", refusing)
    for repair in (False, True):
        with pytest.raises(RunError) as told:
            learn_run(load_config(config, {"output_dir": str(run)}), Progress(), repair=repair)
        assert str(told.value) == f"{path}: cannot be read: Permission denied"
    assert not (run / "damaged").exists()


def test_a_stage_that_is_missing_is_trained_again(
    tmp_path: Path, three_tasks: Any, trainings: Counted
) -> None:
    config, run = copy_of(three_tasks("nlora"), tmp_path)
    shutil.rmtree(run / "outputs/2-animals")
    with pytest.raises(
        RunError, match=r"2-animals: is missing; restore it, or give the run's command with --repair"
    ):
        learn(config, f"output_dir={run}")
    repaired(config, run)
    assert trainings.count == 1
    assert files(run) == files(three_tasks("nlora")[1])


def test_an_edited_summary_is_made_anew(tmp_path: Path, three_tasks: Any, trainings: Counted) -> None:
    config, run = copy_of(three_tasks("nlora"), tmp_path)
    before = read_summary(run)
    values = json.loads((run / "summary.json").read_text())
    values["R"][2][0], values["average_accuracy"] = 100.0, 100.0
    for text in (json.dumps(values), "{"):
        (run / "summary.json").write_text(text)
        assert learn(config, f"output_dir={run}").R == before.R
        assert read_summary(run).average_accuracy == before.average_accuracy
    assert trainings.count == 0


def test_a_run_without_checksums_is_taken_as_it_is(
    tmp_path: Path, three_tasks: Any, trainings: Counted
) -> None:
    config, run = copy_of(three_tasks("nlora"), tmp_path)
    for file in run.glob("outputs/*/checksums.json"):
        file.unlink()
    edited(run / "outputs/2-animals" / ADAPTER)
    assert learn(config, f"output_dir={run}").status == "complete"
    assert trainings.count == 0
    cut(
        run / "outputs/2-animals" / ADAPTER
    )  # cannot be read, and nobody knows whether stage 3 fits a new one
    repaired(config, run)
    assert trainings.count == 2


def test_a_trained_stage_that_is_damaged_before_it_is_scored(
    tmp_path: Path, three_tasks: Any, trainings: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, run = copy_of(three_tasks("nlora"), tmp_path)
    shutil.rmtree(run / "outputs/3-shades")
    with monkeypatch.context() as patch:
        patch.setattr(sequence, "write_stage", lambda *args, **kwargs: pytest.fail("no scores yet"))
        with pytest.raises(pytest.fail.Exception):
            learn(config, f"output_dir={run}")
    path = run / "outputs/.tmp-3-shades" / ADAPTER
    edited(path)
    with pytest.raises(RunError, match=str(path)):
        learn(config, f"output_dir={run}")
    repaired(config, run)
    assert trainings.count == 2
    assert files(run) == files(three_tasks("nlora")[1])


def test_a_folder_without_a_run_has_nothing_to_repair(
    tmp_path: Path, three_tasks: Any, nlora: Callable[..., Any]
) -> None:
    told = nlora("run", three_tasks("nlora")[0], f"output_dir={tmp_path / 'none'}", "--repair")
    assert (told.status, "no such folder" in told.err) == (2, True)
    assert not (tmp_path / "none").exists()
