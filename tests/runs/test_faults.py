"""What can go wrong around a run: full and read-only disks, clocks, moved folders, file systems without locks.

Each time: one clear line, the last state intact, and the same command goes on once the fault is gone.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import resource
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers import ANIMALS, COLORS, learn, same_outcome, write_config, write_task
from nlora.errors import RunError
from nlora.runs import lock
from nlora.runs.folder import RunFolder
from nlora.runs.log_file import RunLog
from nlora.runs.run_yaml import read_run_file
from nlora.runs.summary import read_summary

TinyModel = Callable[[str], Path]
Files = dict[str, bytes]


def small(folder: Path, model: Path, **changes: Any) -> Path:
    tasks = [
        write_task(folder / "data", name, labels, train=8, test=4)
        for name, labels in (("tints", COLORS), ("pets", ANIMALS))
    ]
    train = {"epochs": 1, "batch_size": 4, "learning_rate": 5e-3}
    return write_config(folder, model, tasks=tasks, train=train, **changes)


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory, tiny_model: TinyModel) -> Callable[[str], Path]:
    """make(method) -> a folder with config.yaml, and its finished run in `run`; do not change it."""
    made: dict[str, Path] = {}

    def make(method: str = "nlora") -> Path:
        if method not in made:
            folder = made[method] = tmp_path_factory.mktemp("small")
            learn(small(folder, tiny_model("llama"), method=method))
        return made[method]

    return make


def after_one_stage(made: Path, to: Path) -> str:
    """A copy of the run as it was after its first stage; returns the override of the folder."""
    shutil.copytree(made / "run", to)
    for rest in ("outputs/2-pets", "summary.json", "report.html", "analysis.json"):
        shutil.rmtree(to / rest) if (to / rest).is_dir() else (to / rest).unlink(missing_ok=True)
    with RunFolder.open(_config(made, to), _versions(to)):
        pass  # writes the summary of one stage
    return f"output_dir={to}"


def _config(made: Path, to: Path) -> Any:
    from nlora.config.load import load_config

    return load_config(made / "config.yaml", [f"output_dir={to}"]).config


def _versions(run: Path) -> dict[str, str]:
    return dict(read_run_file(run)["versions"])


def outcome(run: Path) -> Files:
    """The files of the stages that have no times in them."""
    names = ("adapter/*", "model/*.safetensors", "predict_eval_predictions.jsonl")
    return {
        str(p.relative_to(run)): p.read_bytes() for name in names for p in run.glob(f"outputs/[0-9]*/{name}")
    }


class SmallDisk:
    """A disk that can be full: a tmpfs of 2 MiB where one can be mounted, else a limit for the size of files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        mounting = ["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(folder)]
        can_mount = os.geteuid() == 0 and shutil.which("mount") is not None
        self.is_mounted = (
            can_mount and subprocess.run(mounting, check=False, capture_output=True).returncode == 0
        )
        self._limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(self) -> None:
        if not self.is_mounted:
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, self._limits[1]))
            return
        with (self.folder / "filler").open("wb", buffering=0) as file:
            for size in (65536, 1):
                try:
                    while file.write(b"x" * size):
                        pass
                except OSError:
                    continue

    def free(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self._limits)
        (self.folder / "filler").unlink(missing_ok=True)

    def close(self) -> None:
        self.free()
        if self.is_mounted:
            subprocess.run(["umount", str(self.folder)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    (folder := tmp_path / "disk").mkdir()
    made = SmallDisk(folder)
    yield made
    made.close()


def full_from(disk: SmallDisk, patch: pytest.MonkeyPatch, target: str) -> None:
    """The disk is full from the first call of a function on."""
    from importlib import import_module

    place, name = target.rsplit(".", 1)
    try:
        owner: Any = import_module(place)
    except ModuleNotFoundError:
        module, kind = place.rsplit(".", 1)
        owner = getattr(import_module(module), kind)
    function = getattr(owner, name)

    def filling(*args: Any, **kwargs: Any) -> Any:
        disk.fill()
        return function(*args, **kwargs)

    patch.setattr(owner, name, filling)


FULL = (
    r"cannot be written: (No space left on device|File too large); free some space, or choose another place"
)


@pytest.mark.parametrize(
    ("method", "target", "done"),
    [
        ("nlora", "nlora.models.lora_adapter.LoraAdapter.save", 1),
        ("seqft", "nlora.models.full_model.FullModel.commit", 1),  # written by a library in Rust
        ("nlora", "nlora.runs.sequence.keep_trained", 1),
        ("nlora", "nlora.runs.stage_results.write_results", 1),
        ("nlora", "nlora.runs.stage_results.write_stage_record", 1),
        ("nlora", "nlora.runs.folder.write_summary", 2),
    ],
)
def test_a_disk_that_fills_up(
    small_run: Callable[[str], Path],
    disk: SmallDisk,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    target: str,
    done: int,
) -> None:
    made = small_run(method)
    run = disk.folder / "run"
    target_folder = after_one_stage(made, run)
    before = outcome(run)
    with monkeypatch.context() as patch:
        full_from(disk, patch, target)
        with pytest.raises(RunError, match=FULL) as caught:
            learn(made / "config.yaml", target_folder)
    disk.free()
    assert "\n" not in str(caught.value)
    assert str(run) in str(caught.value)
    assert len(list(run.glob("outputs/[0-9]*"))) == done
    assert before.items() <= outcome(run).items()
    assert read_summary(run).status == "running"
    assert same_outcome(learn(made / "config.yaml", target_folder), read_summary(made / "run"))
    assert outcome(run) == outcome(made / "run")
    assert not [p for p in run.rglob("*") if p.name.startswith(".tmp-")]


def test_a_report_that_does_not_fit_on_the_disk_is_said_and_made_later(
    small_run: Callable[..., Path],
    disk: SmallDisk,
    monkeypatch: pytest.MonkeyPatch,
    nlora: Callable[..., Any],
) -> None:
    made, run = small_run(), disk.folder / "run"
    command = ("run", made / "config.yaml", after_one_stage(made, run))
    with monkeypatch.context() as patch:
        full_from(disk, patch, "nlora.api.finish.write_report")
        told = nlora(*command)
    disk.free()
    assert told.status == 0
    assert f"no report: {run / 'report.html'}: cannot be written" in " ".join(told.out.split())
    assert not (run / "report.html").exists()
    assert "summary and report are made again" in nlora(*command).out
    assert (run / "report.html").exists()
    assert "nothing to do" in nlora(*command).out


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a file that is always full")
def test_a_log_on_a_full_disk_is_one_line_and_ends_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    log = RunLog(Path("/dev/full"))
    for _ in range(3):
        logging.getLogger("nlora").info("a line")
    log.close()
    printed = capfd.readouterr().err
    assert printed == "/dev/full: No space left on device; the run goes on without a log\n"


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Callable[[Path], None]]:
    """make(folder) -> nothing in it can be written any more, not even by root."""
    made: list[Path] = []

    def make(folder: Path) -> None:
        if os.geteuid() == 0:
            subprocess.run(["mount", "--bind", str(folder), str(folder)], check=True)
            subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], check=True)
        else:
            subprocess.run(["chmod", "-R", "a-w", str(folder)], check=True)
        made.append(folder)

    yield make
    for folder in made:
        undo = ["umount", str(folder)] if os.geteuid() == 0 else ["chmod", "-R", "u+w", str(folder)]
        subprocess.run(undo, check=True)


def test_a_read_only_run_is_read_but_not_continued(
    tmp_path: Path,
    small_run: Callable[..., Path],
    read_only: Callable[[Path], None],
    nlora: Callable[..., Any],
) -> None:
    made, run = small_run(), tmp_path / "run"
    shutil.copytree(made / "run", run)
    started = tmp_path / "started"
    after_one_stage(made, started)
    for folder in (run, started):
        read_only(folder)
    for folder in (run, started):
        told = nlora("run", made / "config.yaml", f"output_dir={folder}")
        assert told.status == 2
        assert str(folder) in told.err
        assert told.err.count("\n") == 1
    texts = tmp_path / "texts.csv"
    texts.write_text("sentence\nthe red thing\n")
    for command in (
        ("eval", run),
        ("predict", run, "--task", "tints", "--file", texts),
        ("gate", run, "--max-drop", 100),
        ("compare", run, started),
        ("report", run, "--out", tmp_path / "page.html"),
        ("export", run, tmp_path / "exported", "--as", "adapter"),
    ):
        told = nlora(*command)
        assert told.status == 0, (command, told.err)
    for command in (("report", run), ("analyze", run)):
        told = nlora(*command)
        assert (told.status, "choose another place" in told.err) == (2, True)


@pytest.mark.parametrize("jump", [-86_400.0, 86_400.0])
def test_a_clock_that_jumps(
    tmp_path: Path, small_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, jump: float
) -> None:
    """At every look at the clock it is another day."""
    made, run = small_run(), tmp_path / "run"
    override = after_one_stage(made, run)
    clock, looks = time.time, [0]

    def jumping() -> float:
        looks[0] += 1
        return clock() + jump * looks[0]

    monkeypatch.setattr(time, "time", jumping)
    summary = learn(made / "config.yaml", override)
    assert looks[0] > 0
    assert same_outcome(summary, read_summary(made / "run"))
    assert all(0 < seconds < 600 for seconds in (*summary.train_seconds, *summary.evaluate_seconds))
    results = json.loads((run / "outputs/2-pets/all_results.json").read_text())
    assert all(value > 0 for key, value in results.items() if "runtime" in key or "per_second" in key)
    assert outcome(run) == outcome(made / "run")


def test_a_run_that_is_moved_while_it_rests(
    here: Path, monkeypatch: pytest.MonkeyPatch, nlora: Callable[..., Any]
) -> None:
    """Its data is found through relative paths; it is started from its old folder, and read from elsewhere."""
    whole = read_summary(here / "runs/support")
    moved = here / "archive/2026/support"
    moved.parent.mkdir(parents=True)
    shutil.move(here / "runs/support", moved)
    answers = outcome(moved)
    shutil.rmtree(moved / "outputs/2-urgency")
    (moved / "summary.json").unlink()
    told = nlora("run", "support.yaml", "output_dir=archive/2026/support")
    assert told.status == 0, told.err
    assert "resuming after stage 1" in told.out
    assert same_outcome(read_summary(moved), whole)
    assert outcome(moved) == answers
    monkeypatch.chdir("/")
    for command in (
        ("eval", moved, "--json"),
        ("report", moved),
        ("gate", moved, "--max-drop", 100),
        ("export", moved, here / "exported", "--as", "adapter"),
    ):
        told = nlora(*command)
        assert told.status == 0, (command, told.err)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_that_cannot_lock_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refused(*args: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", refused)
    with pytest.raises(RunError, match="its file system cannot lock files") as caught:
        lock.held_lock(tmp_path)
    assert "\n" not in str(caught.value)
    assert lock.is_held(tmp_path) is not True


def test_a_file_as_the_lock_can_be_deleted_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without flock, filelock takes a file, which a process that was killed leaves behind."""

    def unknown(*args: Any) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr("fcntl.flock", unknown)
    first = lock.held_lock(tmp_path)
    with pytest.raises(
        RunError, match=rf"in use by another run; wait for it \(if none is active, delete {tmp_path}"
    ):
        lock.held_lock(tmp_path)
    first.release()
    lock.held_lock(tmp_path).release()
