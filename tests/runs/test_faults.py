"""What can go wrong around a run: read-only folders, clocks, moved folders, file systems without locks.

Each time: one clear line, the last state intact, and the same command goes on once the fault is gone.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from small_runs import after_one_stage, outcome

from helpers import learn, same_outcome
from nlora.errors import RunError
from nlora.runs import lock
from nlora.runs.summary import read_summary


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Callable[[Path], None]]:
    """make(folder) -> nothing in it can be written any more, not even by root."""
    made: list[Path] = []

    def make(folder: Path) -> None:
        if os.geteuid() == 0:
            bound = subprocess.run(["mount", "--bind", str(folder), str(folder)], check=False)
            if bound.returncode:
                pytest.skip("root may write everywhere, and nothing can be mounted here")
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
    assert "learns 1 more task on" in told.out
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
