"""The processes of a sweep: real runs, forked and as commands; how they are stopped; what their logs say."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from safetensors.torch import load_file

import nlora
from helpers import write_config
from nlora.cli.sweep import run_sweep, runner_of
from nlora.sweeps.check import check_sweep, state_of
from nlora.sweeps.expand import read_sweep
from nlora.sweeps.processes import (
    Job,
    Launch,
    last_error,
    launch_command,
    launch_forked,
    launch_tethered,
    stop,
)
from sweeps import Running, job, table, two_runs

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="runs are forked on Linux only")
WAYS = [launch_command, pytest.param(launch_forked, marks=LINUX)]


def test_a_run_that_does_not_hear_is_killed() -> None:
    processes = [Running(), Running(deaf=True), Running()]
    stop(processes, grace_seconds=0.0)
    assert processes[1].heard == ["terminate", "kill"]
    assert processes[0].heard[:1] == processes[2].heard[:1] == ["terminate"]
    assert all(process.ended.is_set() for process in processes)


@pytest.mark.parametrize(
    ("log", "status", "error"),
    [
        ("a\nerror: x.yaml:3: wrong\n", 2, "x.yaml:3: wrong"),
        ("2 errors:\na: one\nb: two\n", 2, "a: one (2 errors in all)"),
        ("internal error: KeyError: 'x'\nrun again with --debug for the traceback\n", 1,
         "internal error: KeyError: 'x'"),
        ("Traceback\nSegmentation fault\n\n", 139, "Segmentation fault"),
        ("an error in words\nlast\n", 1, "last"),
        ("", 1, "exit status 1, and nothing in the log"),
        ("error: not this\n", -9, "killed by SIGKILL (out of memory?)"),
        ("", -11, "killed by SIGSEGV"),
    ],
)  # fmt: skip
def test_the_last_error_is_found_in_the_log(tmp_path: Path, log: str, status: int, error: str) -> None:
    before = "error: of the attempt before\n"
    (tmp_path / "log").write_text(before + log)
    assert last_error(tmp_path / "log", len(before), status) == error


@pytest.mark.slow
@LINUX
def test_a_run_is_the_same_whether_it_is_forked_or_not(tmp_path: Path, tiny_model: Any) -> None:
    """Forked, one run finishes and one is refused by its own check; both say so in their logs."""
    sweep = read_sweep(two_runs(tmp_path, tiny_model))
    check_sweep(sweep)
    console = Console(width=200, force_terminal=False)
    with console.capture() as captured:
        good = run_sweep(sweep, runner_of(sweep, 2), console)
    told, out = captured.get(), tmp_path / "out"
    assert not good
    assert state_of(out / "good-seed1") == "complete"
    assert "1 of 2 runs failed" in told
    assert "no_such_module" in told
    log = (out / "logs" / "good-seed1.log").read_text()
    assert log.startswith(f"$ {sys.executable} -m nlora run {out}")
    assert "average accuracy" in log
    (row,) = table(out)
    assert (row["run"], row["status"], row["seeds"]) == ("good", "complete", "1")
    base = next(out.glob("base-*.yaml"))
    alone = nlora.run(
        nlora.load_config(base, ["method=inclora", "name=good", "seed=1", f"output_dir={tmp_path / 'alone'}"])
    )
    forked = nlora.open_run(out / "good-seed1")
    assert forked.summary.R == alone.summary.R
    for one, other in zip(forked.stages, alone.stages, strict=True):
        file = "adapter/adapter_model.safetensors"
        mine, theirs = load_file(one.folder / file), load_file(other.folder / file)
        assert all(mine[key].equal(theirs[key]) for key in theirs)


@LINUX
def test_a_run_that_nobody_waits_for_does_not_begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while the server still imports: it forks for whoever had asked."""
    forked: list[ForkServerProcess] = []
    start = ForkServerProcess.start

    def interrupted(process: ForkServerProcess) -> None:
        start(process)
        forked.append(process)
        raise KeyboardInterrupt

    monkeypatch.setattr(ForkServerProcess, "start", interrupted)
    asked = job("a", tmp_path, "ls", "recipes")
    with pytest.raises(KeyboardInterrupt):
        launch_forked(asked, {})
    forked[0].join(60)
    assert forked[0].exitcode == 0
    assert asked.log.read_text() == f"$ {sys.executable} -m nlora ls recipes\n"


@pytest.mark.parametrize("launch", [*WAYS, launch_tethered])
def test_a_run_has_a_log_variables_and_an_exit_status(launch: Launch, tmp_path: Path) -> None:
    right = job("a", tmp_path, "ls", "recipes")
    assert launch(right, {"COLUMNS": "30"}).wait(60) == 0
    command, *lines = right.log.read_text().splitlines()
    assert command == f"$ {sys.executable} -m nlora ls recipes"
    assert max(map(len, lines)) <= 30
    size = right.log.stat().st_size
    wrong = job("a", tmp_path, "ls", "nothing")
    assert launch(wrong, {}).wait(60) == 2
    assert last_error(wrong.log, size, 2).startswith("nlora ls: there is no list of 'nothing'")


@pytest.mark.slow
@pytest.mark.parametrize("launch", WAYS)
def test_a_run_is_terminated_or_killed(launch: Launch, tmp_path: Path, tiny_model: Any) -> None:
    """The one that is stopped by SIGSTOP does not react to SIGTERM."""
    config = write_config(tmp_path, tiny_model("llama"), train={"epochs": 1e6, "batch_size": 8})
    processes, logs = [], [tmp_path / "reacts", tmp_path / "deaf"]
    for log in logs:
        arguments = ("run", str(config), f"output_dir={log}.run", "evaluate.zero_shot=true")
        processes.append(launch(Job(log.name, arguments, log, Path(f"{log}.run")), {}))
    deadline = time.monotonic() + 60
    while not all(Path(f"{log}.run", "zero_shot.json").is_file() for log in logs):
        assert time.monotonic() < deadline
        with pytest.raises(subprocess.TimeoutExpired):
            processes[0].wait(0.1)
    if launch is launch_forked:  # what ends a terminal or a job signals the whole group of the sweep
        server = server_pid()
        assert os.getsid(server) == server
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
            os.kill(server, number)
    pid = pid_of(processes[1])
    assert os.getpgid(pid) == pid != os.getpgid(0), "Ctrl-C must not reach it"
    os.kill(pid, signal.SIGSTOP)
    stop(processes, grace_seconds=5.0)
    assert [process.wait(0) for process in processes] == [130, -signal.SIGKILL]
    last = logs[0].read_text().splitlines()[-1]
    assert "keeps 0 of 2 stages" in last
    assert "the same command resumes" in last


@pytest.mark.slow
@LINUX
def test_a_run_whose_server_was_killed_is_still_waited_for(tmp_path: Path, tiny_model: Any) -> None:
    """It was taken for one that has failed, went on, and nobody could stop it."""
    config = write_config(tmp_path, tiny_model("llama"), train={"epochs": 1e6, "batch_size": 8})
    folder = tmp_path / "run"
    arguments = ("run", str(config), f"output_dir={folder}", "evaluate.zero_shot=true")
    process = launch_forked(Job("a", arguments, tmp_path / "log", folder), {})
    deadline = time.monotonic() + 60
    while not (folder / "zero_shot.json").is_file():
        assert time.monotonic() < deadline
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.1)
    os.kill(server_pid(), signal.SIGKILL)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1.0)
    stop([process], grace_seconds=30.0)
    assert process.wait(0) == 255  # whoever could tell the status is gone
    assert "keeps 0 of 2 stages" in (tmp_path / "log").read_text().splitlines()[-1]
    assert launch_forked(job("b", tmp_path, "ls", "recipes"), {}).wait(60) == 0  # by another server


def server_pid() -> int:
    return int(forkserver._forkserver._forkserver_pid)  # type: ignore[attr-defined]


def pid_of(process: Any) -> int:
    return int(process.pid if isinstance(process, subprocess.Popen) else process._process.pid)


@pytest.mark.slow
@LINUX
def test_the_server_starts_no_threads_and_leaves_cuda_alone() -> None:
    code = """
import glob, torch
used = []
torch._C._cuda_init = lambda: used.append("init")
import nlora.sweeps.preload
threads = [open(name).read().strip() for name in glob.glob("/proc/self/task/*/comm")]
print(len([name for name in threads if name != "jemalloc_bg_thd"]), torch.cuda.is_initialized(), used)
"""  # pyarrow's allocator, if `datasets` is installed, has a thread that is made for forks
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "1 False []\n"
