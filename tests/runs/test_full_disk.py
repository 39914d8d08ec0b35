"""Disks that fill up at any write of a run: one clear line, the last state intact, and the same command resumes."""

from __future__ import annotations

import logging
import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from small_runs import after_one_stage, outcome

from helpers import learn, same_outcome
from nlora.errors import RunError
from nlora.runs.log_file import RunLog
from nlora.runs.summary import read_summary


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
    assert "report.html" not in told.out.partition("summary  ")[2]  # it lists what is there
    assert not any(line.startswith("report ") for line in told.out.splitlines())
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
