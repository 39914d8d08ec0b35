"""The processes of a sweep: how a run is started, stopped, and asked for its last error.

On Linux every run is forked from one server process that has imported torch and transformers already, which saves a
short run most of its time. Elsewhere each run is a command of its own. Either way a crash, or a kill because memory ran
out, ends that run only.
"""

from __future__ import annotations

import contextlib
import os
import runpy
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import Pipe, forkserver, set_forkserver_preload
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import BinaryIO, Protocol

import psutil

from nlora.errors import killed_by
from nlora.sweeps import tether

_SERVER_LOST = 255
"""What multiprocessing gives as the status of a process whose server was killed, while it goes on."""
GRACE_SECONDS = 20.0
"""How long a stopped run may take to end by itself."""


@dataclass(frozen=True, slots=True)
class Job:
    """One run.

    arguments: those of `nlora`. log: the file to which its output is appended. folder: the run's. tasks: how many the
    run has. zero_shot: whether scores before any training are wanted.
    """

    name: str
    arguments: tuple[str, ...]
    log: Path
    folder: Path
    tasks: int = 0
    zero_shot: bool = False

    @property
    def command(self) -> tuple[str, ...]:
        """The command that runs it in a process of its own, with this Python."""
        return (sys.executable, "-m", "nlora", *self.arguments)


class Process(Protocol):
    """The part of subprocess.Popen that is needed here."""

    def wait(self, timeout: float | None = None) -> int: ...
    def terminate(self) -> None: ...
    def kill(self) -> None: ...


Launch = Callable[[Job, Mapping[str, str]], Process]
"""Starts a job; the mapping is added to this process's environment variables."""


def best_launch(processes: int = 1) -> Launch:
    """How runs of this many processes start fastest: on Linux, those of one process are forked."""
    return launch_forked if sys.platform == "linux" and processes == 1 else launch_command


def launch_command(job: Job, environment: Mapping[str, str], prefix: Sequence[str] = ()) -> Process:
    """Start a job as a command of its own. prefix: the command that becomes it."""
    with _opened_log(job) as log:
        return subprocess.Popen(
            [*prefix, *job.command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=_complete(environment),
            # Ctrl-C reaches this process only, which then stops the runs in order.
            start_new_session=True,
        )


def launch_tethered(job: Job, environment: Mapping[str, str]) -> Process:
    """Start a job as a command that is killed when the calling thread ends, however that ends; on Linux only."""
    if sys.platform != "linux":
        return launch_command(job, environment)
    # -I and -S: nothing of the user's is imported.
    return launch_command(job, environment, [sys.executable, "-I", "-S", tether.__file__, str(os.getpid())])


def launch_forked(job: Job, environment: Mapping[str, str]) -> Process:
    """Start a job as a fork of the server."""
    _opened_log(job).close()
    _ensure_server(environment)
    return _Forked(job, _complete(environment))


def stop(processes: Sequence[Process], grace_seconds: float = GRACE_SECONDS) -> None:
    """Terminate processes, and kill those that are still running after `grace_seconds`."""
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + grace_seconds
    left = deque(processes)
    try:
        while left:
            with contextlib.suppress(subprocess.TimeoutExpired):
                left[0].wait(timeout=max(0.0, deadline - time.monotonic()))
                left.popleft()
                continue
            break
    finally:  # also if a second Ctrl-C interrupts the waiting
        for process in left:
            process.kill()
            process.wait()


def last_error(log: Path, start: int, status: int) -> str:
    """The line that says why a run failed, from what it appended to its log after the byte `start`."""
    if status < 0:
        return killed_by(-status)
    try:
        with log.open("rb") as file:
            file.seek(start)
            text = file.read().decode(errors="replace")
    except OSError:
        text = ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for i in range(len(lines) - 1, -1, -1):
        head, colon, rest = lines[i].partition("error")
        if colon and rest.startswith((":", "s:")) and (head in ("", "internal ") or head[:-1].isdecimal()):
            if rest.startswith("s:"):  # "3 errors:" and a line for each
                return " ".join(lines[i + 1 : i + 2]) + f" ({head}errors in all)"
            return lines[i].removeprefix("error: ")
    return lines[-1] if lines else f"exit status {status}, and nothing in the log"


class _Forked:
    """A process forked from the server, with the interface of Popen."""

    def __init__(self, job: Job, environment: dict[str, str]) -> None:
        theirs, ours = Pipe(duplex=False)
        self._process = ForkServerProcess(target=_run, args=(job.arguments, job.log, environment, theirs))
        with ours:
            # It takes seconds while the server still imports. A fork that comes after Ctrl-C then hears of no start.
            self._process.start()
            self._ended = threading.Event()
            # Only one thread may wait for the process: it reads the exit status from a pipe.
            threading.Thread(target=self._watch, daemon=True).start()
            ours.send(None)
        theirs.close()

    def wait(self, timeout: float | None = None) -> int:
        if not self._ended.wait(timeout):
            raise subprocess.TimeoutExpired("nlora", timeout or 0)
        assert self._process.exitcode is not None
        return self._process.exitcode

    def terminate(self) -> None:
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if not self._ended.is_set() and self._process.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, number)

    def _watch(self) -> None:
        self._process.join()
        if self._process.exitcode == _SERVER_LOST:  # or the run's own status, and it is gone
            while self._is_there():
                time.sleep(0.1)
        self._ended.set()

    def _is_there(self) -> bool:
        try:
            return bool(psutil.Process(self._process.pid).status() != psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return False


def _ensure_server(environment: Mapping[str, str]) -> None:
    """Start the server unless it runs already.

    environment: of the first run. Its number of threads has to be set before torch is imported, and is the same for
    all runs of a sweep.
    """
    threads = {key: value for key, value in environment.items() if key == "OMP_NUM_THREADS"}
    before = dict(os.environ)
    os.environ.update(threads)
    try:
        set_forkserver_preload(["nlora.sweeps.server_signals", "nlora.sweeps.preload"])
        forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(before)


def _run(arguments: Sequence[str], log: Path, environment: Mapping[str, str], start: Connection) -> None:
    """Runs `python -m nlora` in a forked process, after the parent has sent the start message."""
    try:
        start.recv()
    except EOFError:  # nobody waits for this run any more
        return
    from nlora.sweeps.server_signals import hear_signals  # which the server has imported

    os.setsid()  # as start_new_session above
    hear_signals()
    os.environ.clear()
    os.environ.update(environment)
    with log.open("ab") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    sys.argv = ["nlora", *arguments]
    runpy.run_module("nlora", run_name="__main__")


def _opened_log(job: Job) -> BinaryIO:
    """The log, with the command as its next line."""
    job.log.parent.mkdir(parents=True, exist_ok=True)
    log = job.log.open("ab")
    log.write(f"$ {' '.join(job.command)}\n".encode())
    log.flush()
    return log


def _complete(environment: Mapping[str, str]) -> dict[str, str]:
    return {**os.environ, "PYTHONUNBUFFERED": "1", **environment}
