"""Where the runs of a sweep run: as processes on this machine, or as tasks of a Ray cluster.

Closing the outcomes early, as an exception does, stops what is running: first SIGTERM, then SIGKILL.

Not yet tested on such hardware: one GPU per run (CUDA_VISIBLE_DEVICES), and Ray clusters.
"""

from __future__ import annotations

import importlib
import os
import queue
import shutil
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from nlora.errors import MissingExtraError, missing
from nlora.models.launchers import cores
from nlora.sweeps.file import RayOptions
from nlora.sweeps.processes import Job, Launch, Process, best_launch, last_error, launch_command, stop


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended. status: 0 is success, negative is a signal. error: its last error line, if it failed."""

    job: Job
    status: int
    seconds: float
    error: str = ""


Outcomes = Generator[Outcome, None, None]
"""Closing it early stops what is running."""


class Runner(Protocol):
    """Runs jobs. `begin` is called right before each one starts; if it returns False, the job is left out."""

    def outcomes(self, jobs: Iterable[Job], begin: Callable[[Job], bool]) -> Outcomes: ...


class LocalRunner:
    """Runs up to `places` jobs side by side on this machine.

    environments: for each place, the environment variables that its jobs get. launch: by default `best_launch`.
    """

    def __init__(
        self, places: int, environments: Sequence[Mapping[str, str]], launch: Launch | None = None
    ) -> None:
        self._free = deque(environments[i % len(environments)] if environments else {} for i in range(places))
        self._launch = launch or best_launch()

    def outcomes(self, jobs: Iterable[Job], begin: Callable[[Job], bool]) -> Outcomes:
        """One outcome for each started job, in the order in which they end."""
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
                    why = last_error(job.log, size, status) if status else ""
                    yield Outcome(job, status, time.monotonic() - start, why)
        finally:
            stop([process for process, *_ in running.values()])


class RayRunner:
    """Runs each job as a task of a Ray cluster, which places it by the cores and GPUs that it needs.

    All nodes need nlora and the same folders (a shared file system). Jobs run in this process's current folder.
    """

    def __init__(self, options: RayOptions) -> None:
        self._options = options
        self._ray = _ray()

    def outcomes(self, jobs: Iterable[Job], begin: Callable[[Job], bool]) -> Outcomes:
        """One outcome for each started job, in the order in which they end."""
        ray = self._ray
        if not ray.is_initialized():
            ray.init()
        threads = {"OMP_NUM_THREADS": str(max(1, int(self._options.cpus)))}
        # A stopped run resumes when the sweep is started again, so Ray need not retry.
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
    """Run a job as a command on this machine: the task of a Ray worker."""
    os.chdir(folder)
    (outcome,) = LocalRunner(1, [environment], launch_command).outcomes([job], lambda _: True)
    return outcome


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


def _ray() -> Any:
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise MissingExtraError(f"runner: {missing('ray')}") from error
