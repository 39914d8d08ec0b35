"""Where the runs of a sweep run: as processes on this machine, or as tasks of a Ray cluster.

    runner = LocalRunner(places=2, environments=environments(2))
    with closing(runner.outcomes(jobs, begin)) as outcomes:
        for outcome in outcomes:
            print(outcome.job.name, outcome.status, outcome.error)

Each run is one command in a process of its own, so that a crash, or a kill for want of memory, ends that run only.
Closing the outcomes early, as an exception does, stops what is running: SIGTERM first, SIGKILL for what is still there
later.

Not yet run on such hardware: one GPU per run (CUDA_VISIBLE_DEVICES), and Ray clusters.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import queue
import shutil
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from nlora.errors import MissingExtraError, missing
from nlora.sweeps.file import RayOptions

GRACE_SECONDS = 20.0
"""How long a stopped run may take to end by itself."""


@dataclass(frozen=True, slots=True)
class Job:
    """One command. log: the file that its output is added to."""

    name: str
    command: tuple[str, ...]
    log: Path


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a command ended. status: 0 for done, negative for a signal. error: its last error line, if it failed."""

    job: Job
    status: int
    seconds: float
    error: str = ""


Outcomes = Generator[Outcome, None, None]
"""Closing it early stops what is running."""


class Process(Protocol):
    """What is needed of a subprocess.Popen."""

    def wait(self, timeout: float | None = None) -> int: ...
    def terminate(self) -> None: ...
    def kill(self) -> None: ...


class Runner(Protocol):
    """Runs jobs. begin is asked right before each one starts, and False leaves it out."""

    def outcomes(self, jobs: Iterable[Job], begin: Callable[[Job], bool]) -> Outcomes: ...


Launch = Callable[[Job, Mapping[str, str]], Process]


def launch(job: Job, environment: Mapping[str, str]) -> Process:
    """Start a job's command, its output added to the log. environment: variables to set beside this process's own."""
    job.log.parent.mkdir(parents=True, exist_ok=True)
    with job.log.open("ab") as log:
        log.write(f"$ {' '.join(job.command)}\n".encode())
        log.flush()
        return subprocess.Popen(
            job.command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
            # Ctrl-C reaches this process alone, which then stops the others in order.
            start_new_session=True,
        )


class LocalRunner:
    """Runs up to `places` jobs side by side on this machine.

    environments: of each place, the variables that its jobs get.
    """

    def __init__(
        self, places: int, environments: Sequence[Mapping[str, str]], launch: Launch = launch
    ) -> None:
        self._free = deque(environments[i % len(environments)] if environments else {} for i in range(places))
        self._launch = launch

    def outcomes(self, jobs: Iterable[Job], begin: Callable[[Job], bool]) -> Outcomes:
        """One outcome for each job that began, in the order in which they end."""
        waiting = deque(jobs)
        running: dict[Job, tuple[Process, Mapping[str, str], int, float]] = {}
        ended: queue.SimpleQueue[tuple[Job, int]] = queue.SimpleQueue()
        try:
            while waiting or running:
                while waiting and self._free:
                    job = waiting.popleft()
                    if not begin(job):
                        continue
                    size = job.log.stat().st_size if job.log.is_file() else 0
                    try:
                        process = self._launch(job, self._free[0])
                    except OSError as error:
                        yield Outcome(job, 1, 0.0, f"could not be started: {error}")
                        continue
                    environment = self._free.popleft()
                    running[job] = (process, environment, size, time.monotonic())
                    threading.Thread(target=_await, args=(job, process, ended), daemon=True).start()
                if running:
                    job, status = ended.get()
                    _, environment, size, start = running.pop(job)
                    self._free.append(environment)
                    said = last_error(job.log, size, status) if status else ""
                    yield Outcome(job, status, time.monotonic() - start, said)
        finally:
            stop([process for process, *_ in running.values()])


class RayRunner:
    """Runs each job as a task of a Ray cluster, which places them by the cores and GPUs that each asks for.

    All nodes need nlora and the same folders (a shared file system); commands run in this process's current folder.
    """

    def __init__(self, options: RayOptions) -> None:
        self._options = options
        self._ray = _ray()

    def outcomes(self, jobs: Iterable[Job], begin: Callable[[Job], bool]) -> Outcomes:
        """One outcome for each job that began, in the order in which they end."""
        ray = self._ray
        if not ray.is_initialized():
            ray.init()
        threads = {"OMP_NUM_THREADS": str(max(1, int(self._options.cpus)))}
        # A run goes on where it stopped when the sweep is run again; Ray need not try by itself.
        remote = ray.remote(num_cpus=self._options.cpus, num_gpus=self._options.gpus, max_retries=0)(
            run_in_folder
        )
        pending = {remote.remote(job, str(Path.cwd()), threads): job for job in jobs if begin(job)}
        try:
            while pending:
                (ended, *_), _ = ray.wait(list(pending), num_returns=1)
                job = pending.pop(ended)
                try:
                    yield ray.get(ended)
                except ray.exceptions.RayError as error:  # the worker died, not the command
                    yield Outcome(job, 1, 0.0, f"ray: {str(error).strip().splitlines()[0]}")
        finally:
            for reference in pending:
                ray.cancel(reference)


def run_in_folder(job: Job, folder: str, environment: Mapping[str, str]) -> Outcome:
    """A job from its start to its end, in a process of this machine; what a Ray worker does."""
    os.chdir(folder)
    (outcome,) = LocalRunner(1, [environment]).outcomes([job], lambda _: True)
    return outcome


def environments(jobs: int, devices: Sequence[str]) -> list[dict[str, str]]:
    """The variables of each of `jobs` places: a GPU each, in turn, and an equal share of the cores.

    A user's own OMP_NUM_THREADS stays. A single job without a GPU gets the whole machine.
    """
    places: list[dict[str, str]] = []
    for i in range(jobs):
        place = {"CUDA_VISIBLE_DEVICES": devices[i % len(devices)]} if devices else {}
        if jobs > 1 and "OMP_NUM_THREADS" not in os.environ:
            place["OMP_NUM_THREADS"] = str(max(1, _cores() // jobs))
        places.append(place)
    return places


def visible_gpus() -> list[str]:
    """The GPUs that CUDA_VISIBLE_DEVICES names, or that nvidia-smi lists. Does not import torch."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [device.strip() for device in named.split(",") if device.strip() not in ("", "-1")]
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False).stdout
    return [str(i) for i in range(sum(line.startswith("GPU ") for line in listed.splitlines()))]


def stop(processes: Sequence[Process], grace_seconds: float = GRACE_SECONDS) -> None:
    """End processes: asked first, then, after `grace_seconds` for all together, killed."""
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
    finally:  # also when a second Ctrl-C cuts the waiting short
        for process in left:
            process.kill()
            process.wait()


def last_error(log: Path, start: int, status: int) -> str:
    """The line that says why a command failed, from what it wrote into its log after the byte `start`."""
    if status < 0:
        name = f"signal {-status}"
        with contextlib.suppress(ValueError):
            name = signal.Signals(-status).name
        return f"killed by {name}" + ("; out of memory?" if name == "SIGKILL" else "")
    try:
        with log.open("rb") as file:
            file.seek(start)
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        lines = []
    said = [line.strip() for line in lines if line.strip()]
    for i in range(len(said) - 1, -1, -1):
        head, colon, rest = said[i].partition("error")
        if colon and rest.startswith((":", "s:")) and (head in ("", "internal ") or head[:-1].isdecimal()):
            if rest.startswith("s:"):  # "3 errors:" and a line for each
                return " ".join(said[i + 1 : i + 2]) + f" ({head}errors in all)"
            return said[i].removeprefix("error: ")
    return said[-1] if said else f"exit status {status}, and nothing in the log"


def _await(job: Job, process: Process, ended: queue.SimpleQueue[tuple[Job, int]]) -> None:
    ended.put((job, process.wait()))


def _cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _ray() -> Any:
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise MissingExtraError(f"runner: {missing('ray')}") from error
