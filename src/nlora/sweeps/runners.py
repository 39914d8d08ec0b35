"""Where the runs of a sweep run, and what happens to them there: the events of a runner; and this machine.

`nlora.sweeps.ray_runner` and `nlora.sweeps.slurm_runner` run them on a cluster. Closing the events early, as an
exception does, stops what is running: first SIGTERM, then SIGKILL.

Not yet tested on such hardware: one GPU per run (CUDA_VISIBLE_DEVICES).
"""

from __future__ import annotations

import contextlib
import os
import queue
import shutil
import subprocess
import threading
import time
from collections import deque
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from nlora.models.launchers import cores
from nlora.runs.lock import IN_USE
from nlora.sweeps.check import RunState, state_of
from nlora.sweeps.processes import Job, Launch, Process, best_launch, last_error, stop

_STEP_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Found:
    """The state of a job's folder when its turn came, and the name of the node that found it, if there are several."""

    job: Job
    state: RunState
    node: str = ""

    @property
    def starts(self) -> bool:
        """Whether the job starts now; otherwise it is left alone, and this is its last event."""
        return self.state in ("new", "unfinished")


@dataclass(frozen=True, slots=True)
class Lost:
    """A job whose worker or node died; it starts again."""

    job: Job
    why: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended. status: 0 is success, negative is a signal. error: its last error line, if it failed."""

    job: Job
    status: int
    seconds: float
    error: str = ""


Event = Found | Lost | Outcome
Events = Generator[Event, None, None]
"""Closing it early stops what is running."""


class Runner(Protocol):
    """Runs jobs. A job's folder is looked at when its turn comes, and not before: it may be complete by then."""

    def events(self, jobs: Iterable[Job]) -> Events: ...


class LocalRunner:
    """Runs up to `places` jobs side by side on this machine.

    environments: for each place, the environment variables that its jobs get. launch: by default `best_launch`.
    """

    def __init__(
        self, places: int, environments: Sequence[Mapping[str, str]], launch: Launch | None = None
    ) -> None:
        self._free = deque(environments[i % len(environments)] if environments else {} for i in range(places))
        self._launch = launch or best_launch()

    def events(self, jobs: Iterable[Job]) -> Events:
        """What happens to each job, in the order in which it happens."""
        waiting = deque(jobs)
        running: dict[Job, tuple[Process, Mapping[str, str], int, float]] = {}
        ended: queue.SimpleQueue[tuple[Job, int]] = queue.SimpleQueue()
        try:
            while waiting or running:
                while waiting and self._free:
                    job = waiting.popleft()
                    found = Found(job, state_of(job.folder, job.tasks, zero_shot=job.zero_shot))
                    yield found
                    if not found.starts:
                        continue
                    size = job.log.stat().st_size if job.log.is_file() else 0
                    try:
                        process = self._launch(job, self._free[0])
                    except OSError as error:
                        where = f"{error.filename}: " if error.filename else ""
                        yield Outcome(job, 1, 0.0, f"could not be started: {where}{error.strerror or error}")
                        continue
                    environment = self._free.popleft()
                    running[job] = (process, environment, size, time.monotonic())
                    threading.Thread(target=_await, args=(job, process, ended), daemon=True).start()
                if running:
                    job, status = _next(ended)
                    _, environment, size, start = running.pop(job)
                    self._free.append(environment)
                    why = last_error(job.log, size, status) if status else ""
                    if status > 0 and IN_USE in why and state_of(job.folder) == "elsewhere":
                        yield Found(job, "elsewhere")  # another sweep was a moment faster
                        continue
                    yield Outcome(job, status, time.monotonic() - start, why)
        finally:
            stop([process for process, *_ in running.values()])


def without_complete(jobs: Iterable[Job]) -> Generator[Found, None, list[Job]]:
    """The jobs for a cluster, in which a complete one need not wait for its turn."""
    left = []
    for job in jobs:
        found = Found(job, state_of(job.folder, job.tasks, zero_shot=job.zero_shot))
        if found.state == "complete":
            yield found
        else:
            left.append(job)
    return left


def environments(jobs: int, devices: Sequence[str], processes: int = 1) -> list[dict[str, str]]:
    """The environment variables of each of `jobs` places: its GPUs, in turn, and an equal share of the cores.

    processes: of each job, with a GPU each. The user's own OMP_NUM_THREADS is kept. A single job without a GPU gets the
    whole machine.
    """
    places: list[dict[str, str]] = []
    groups = [",".join(devices[i : i + processes]) for i in range(0, len(devices), processes)]
    for i in range(jobs):
        place = {"CUDA_VISIBLE_DEVICES": groups[i % len(groups)]} if groups else {}
        if jobs > 1 and "OMP_NUM_THREADS" not in os.environ:
            place["OMP_NUM_THREADS"] = str(max(1, cores() // (jobs * processes)))
        places.append(place)
    return places


def visible_gpus() -> list[str]:
    """The GPUs named by CUDA_VISIBLE_DEVICES, or else listed by nvidia-smi. Does not import torch."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [device.strip() for device in named.split(",") if device.strip() not in ("", "-1")]
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False).stdout
    return [str(i) for i in range(sum(line.startswith("GPU ") for line in listed.splitlines()))]


def _await(job: Job, process: Process, ended: queue.SimpleQueue[tuple[Job, int]]) -> None:
    ended.put((job, process.wait()))


def _next(ended: queue.SimpleQueue[tuple[Job, int]]) -> tuple[Job, int]:
    """The next to have ended. It waits in steps: between two of them, Ray's cancel raises KeyboardInterrupt."""
    while True:
        with contextlib.suppress(queue.Empty):
            return ended.get(timeout=_STEP_SECONDS)
