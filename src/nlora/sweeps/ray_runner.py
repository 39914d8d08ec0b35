"""Runs a sweep as tasks of a Ray cluster, which places each by the cores, GPUs and memory that it needs.

All nodes need nlora and the sweep's folder (a shared file system). Tests run it on a Ray of one machine; it has not yet
been run on a cluster of several nodes.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from nlora.errors import InputErrors, Key, MissingExtraError, Problem, missing
from nlora.sweeps.cluster_options import RayOptions
from nlora.sweeps.node import PATIENCE_SECONDS, environment, events_on_node, make_logs
from nlora.sweeps.processes import GRACE_SECONDS, Job
from nlora.sweeps.runners import Event, Events, Found, Lost, Outcome, without_complete

_CONNECT_SECONDS = 5.0
_DEAD = ("WorkerCrashedError", "NodeDiedError", "OutOfMemoryError", "LocalRayletDiedError", "ObjectLostError")
"""Ray's errors after which a run resumes elsewhere. All others are of the run or of the set-up."""
_TRAVELING = ("NLORA_", "HF_", "TRANSFORMERS_", "OMP_", "WANDB_")
"""How the names of the environment variables begin that travel from this machine to the runs."""
_COLOR = re.compile(r"\x1b\[[0-9;]*m")


class RayRunner:
    """Runs each job as a task of Ray, in this process's current folder. Starting or finding Ray takes seconds.

    processes: of each run; cpus and gpus are of each process.
    Raises InputErrors, with the key, if there is no such cluster or no place in it for a run; MissingExtraError.
    """

    def __init__(self, options: RayOptions, processes: int = 1) -> None:
        self._ray = connected(options.address)
        there = self._ray.cluster_resources()
        gpus = options.gpus if options.gpus is not None else float(there.get("GPU", 0) > 0)
        self._options = options
        self._cpus, self._gpus = processes * options.cpus, processes * gpus
        if self._gpus > 1 and self._gpus % 1:
            what = f"a run needs {self._gpus:g} GPUs; Ray gives a run a part of one, or whole ones"
            raise InputErrors([Problem.at(("ray", "gpus"), what)])
        if options.address is None and "RAY_ADDRESS" not in os.environ:  # no node will join this machine
            _check_fits({"gpus": ("GPU", self._gpus), "cpus": ("CPU", self._cpus)}, there)

    def events(self, jobs: Iterable[Job]) -> Events:
        """What happens to each job, in the order in which it happens."""
        ray = self._ray
        jobs = yield from without_complete(jobs)
        make_logs(jobs)
        died = tuple(getattr(ray.exceptions, name) for name in _DEAD)
        pending = {self._submitted(job): job for job in jobs}
        started: dict[Job, float] = {}
        attempts: Counter[Job] = Counter()
        try:
            while pending:
                (task, *_), _ = ray.wait(list(pending), num_returns=1)
                job = pending[task]
                try:
                    event = ray.get(next(task))
                except StopIteration:
                    del pending[task]
                    continue
                except ray.exceptions.RayError as error:
                    del pending[task]
                    why = reason(error)
                    attempts[job] += 1
                    if isinstance(error, died) and attempts[job] <= self._options.retries:
                        pending[self._submitted(job, PATIENCE_SECONDS)] = job
                        event = Lost(job, f"{why} ({attempts[job]} of {self._options.retries} retries)")
                    else:
                        seconds = time.monotonic() - started[job] if job in started else 0.0
                        event = Outcome(job, 1, seconds, f"Ray: {why}")
                if isinstance(event, Found):
                    started.setdefault(job, time.monotonic())
                yield event
        finally:
            for task in pending:
                ray.cancel(task)
            if pending:  # the runs end in order, before Ray kills its workers
                ends = [task.completed() for task in pending]
                ray.wait(ends, num_returns=len(ends), timeout=GRACE_SECONDS + 5)

    def _submitted(self, job: Job, patience: float = 0.0) -> Any:
        options = self._options
        variables = _variables()
        path = variables.get("PYTHONPATH")  # a worker imports nlora, too
        task = self._ray.remote(
            num_returns="streaming",
            max_retries=0,  # `events` tries again, and says so
            num_gpus=self._gpus,
            num_cpus=self._cpus,
            memory=options.memory,
            runtime_env={"env_vars": {"PYTHONPATH": path}} if path else None,
        )(events_on_worker)
        variables |= environment(options.cpus, self._gpus, variables)
        return task.remote(job, str(Path.cwd()), variables, patience)


def events_on_worker(
    job: Job, folder: str, environment: Mapping[str, str], patience: float
) -> Iterator[Event]:
    """The task of a Ray worker."""
    # Ray cancels by SIGINT, which a shell lets a sweep in the background ignore, and with it the workers it starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield from events_on_node(job, folder, environment, patience)


def _variables() -> dict[str, str]:
    """The environment variables that travel from this machine to the runs."""
    found = {k: v for k, v in os.environ.items() if k.startswith(_TRAVELING) or k == "PYTHONPATH"}
    if job := os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR"):  # a command of `ray job submit`
        given = json.loads(job).get("runtime_env", {}).get("env_vars", {})
        if "OMP_NUM_THREADS" not in given:  # Ray itself sets it to 1 there
            found.pop("OMP_NUM_THREADS", None)
    return found


def connected(address: str | None, **local: Any) -> Any:
    """The module `ray`, connected to a cluster. local: how to start one on this machine, as `ray.init` takes it."""
    try:
        ray = importlib.import_module("ray")
    except ImportError as error:
        raise MissingExtraError(f"runner: {missing('ray')}") from error
    if ray.is_initialized():
        return ray
    given = address or os.environ.get("RAY_ADDRESS")
    at: Key = ("ray", "address") if address else ("runner",)
    if given:
        _check_address(given, at)
    try:
        with _kept_handler():
            ray.init(address=given, log_to_driver=False, logging_level="ERROR", **local)
    except Exception as error:  # Ray raises one without a type if it takes long to start
        where = f"the Ray cluster '{given}'" if given else "Ray"
        raise InputErrors([Problem.at(at, f"no connection to {where}: {reason(error)}")]) from error
    return ray


def reason(error: BaseException) -> str:
    """The line of one of Ray's errors that says why: the last one of a traceback, else the first one."""
    lines = [line.strip() for line in _COLOR.sub("", str(error)).splitlines() if line.strip()]
    if missing_module := re.search(r"No module named '(nlora)\b", str(error)):
        return f"{missing_module[1]} is not installed on a node; install the same version on all of them"
    if not lines:
        return type(error).__name__
    return lines[-1] if type(error).__name__.startswith("RayTaskError") else lines[0]


def _check_address(given: str, at: Key) -> None:
    """Raises InputErrors if nobody listens there, for which ray.init would wait minutes."""
    if given in ("auto", "local"):
        return
    host, _, port = given.rpartition(":")
    if "://" in given or not host or not port.isdecimal():
        what = (
            f"the address of a Ray cluster must be host:port, as `ray start --head` prints it, not '{given}'"
        )
        raise InputErrors([Problem.at(at, what)])
    try:
        socket.create_connection((host, int(port)), _CONNECT_SECONDS).close()
    except OSError as error:
        what = f"no Ray cluster answers at {given} ({error}); start one with `ray start --head`"
        raise InputErrors([Problem.at(at, what)]) from error


def _check_fits(needs: dict[str, tuple[str, float]], there: dict[str, float]) -> None:
    problems = [
        Problem.at(("ray", key), f"a run needs {need:g}, and the Ray cluster has {there.get(name, 0):g}")
        for key, (name, need) in needs.items()
        if need > there.get(name, 0)
    ]
    if problems:
        raise InputErrors(problems)


@contextlib.contextmanager
def _kept_handler() -> Iterator[None]:
    """Keeps the handler of SIGTERM, which ray.init replaces by one that exits at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
