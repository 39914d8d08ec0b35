"""Runs a sweep as an array of Slurm jobs, through submitit.

A run that is preempted, or reaches its time limit, goes back to the queue and resumes from its folder. All nodes need
nlora and the sweep's folder (a shared file system). Tests run it with submitit's local and debug executors; it has not
yet been run on a Slurm cluster.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import re
import secrets
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from nlora.errors import InputErrors, MissingExtraError, Problem, RunError, missing
from nlora.sweeps.cluster_options import SlurmOptions
from nlora.sweeps.node import PATIENCE_SECONDS, environment, events_on_node, make_logs
from nlora.sweeps.processes import Job, Process, launch_tethered, stop
from nlora.sweeps.runners import Event, Events, Found, Outcome, without_complete

if TYPE_CHECKING:
    from nlora.sweeps.check import RunState

WARNING_SECONDS = 120
"""How long before the end of a job Slurm announces it."""
_GRACE_SECONDS = 90.0
"""How long a run may then take to end by itself."""
_HOLD_SECONDS = 300.0
"""How long a task whose run was stopped from outside waits for Slurm to end it, too."""
_STOPPED = (130, -signal.SIGTERM)
_POLL_SECONDS = 5.0
_NO_LIMIT = 10**6
"""More jobs than an array can have. submitit would take 256 without a number."""


class SlurmRunner:
    """Runs each job as a Slurm job, in this process's current folder.

    folder: for submitit's files. processes: of each run; cpus and gpus are of each process.
    cluster: one of submitit's executors; `local` and `debug` are for tests.
    Raises InputErrors if this machine cannot submit jobs; MissingExtraError.
    """

    def __init__(
        self,
        options: SlurmOptions,
        folder: Path,
        *,
        processes: int = 1,
        cluster: str = "slurm",
        poll_seconds: float = _POLL_SECONDS,
    ) -> None:
        try:
            submitit = importlib.import_module("submitit")
        except ImportError as error:
            raise MissingExtraError(f"runner: {missing('submitit')}") from error
        absent = [tool for tool in ("sbatch", "srun") if cluster == "slurm" and shutil.which(tool) is None]
        if absent:
            what = (
                f"slurm: there is no {absent[0]} on the PATH; start the sweep on a login node of the cluster"
            )
            raise InputErrors([Problem.at(("runner",), what)])
        self._options, self._poll_seconds = options, poll_seconds
        self._refused = (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError)
        self._folder = folder.absolute()
        self._executor = submitit.AutoExecutor(folder, cluster, slurm_max_num_timeout=options.requeue)
        self._executor.update_parameters(**parameters(options, processes))

    def events(self, jobs: Iterable[Job]) -> Events:
        """What happens to each job, in the order in which it is seen. Closing it cancels what is left."""
        jobs = yield from without_complete(jobs)
        pending = self._submitted(jobs)
        seen: Counter[Job] = Counter()
        try:
            while pending:
                for handle, task in list(pending.items()):
                    ended = handle.done()
                    found = task.found()
                    yield from found[seen[task.job] :]
                    seen[task.job] = len(found)
                    if not ended:
                        continue
                    del pending[handle]
                    if outcome := _outcome(handle, task):
                        yield outcome
                if pending:
                    time.sleep(self._poll_seconds)
        finally:
            for handle in pending:
                handle.cancel(check=False)

    def _submitted(self, jobs: list[Job]) -> dict[Any, SlurmTask]:
        if not jobs:
            return {}
        make_logs(jobs)
        variables = environment(self._options.cpus, self._options.gpus, os.environ)
        own = secrets.token_hex(4)  # jobs of an earlier sweep of this folder may still be there
        tasks = [
            SlurmTask(job, str(Path.cwd()), variables, self._folder / f"{job.name}.{own}.starts")
            for job in jobs
        ]
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # submitit prints what sbatch said, too
                return dict(zip(self._executor.submit_array(tasks), tasks, strict=True))
        except self._refused as error:
            said = _last_line(str(error)).removeprefix("sbatch: error: ")
            raise RunError(f"slurm: sbatch refused the sweep: {said}") from error


@dataclass(eq=False, slots=True)
class SlurmTask:
    """One run on a node, which Slurm may end and start again. starts: a file with a line for each start."""

    job: Job
    folder: str
    environment: Mapping[str, str]
    starts: Path
    _process: Process | None = field(default=None, init=False)

    def __call__(self) -> Outcome | None:
        """The outcome; None if the run was left alone."""
        outcome = None
        for event in self._events():
            if isinstance(event, Found):
                with self.starts.open("a") as file:
                    file.write(f"{event.state} {event.node}\n")
            elif isinstance(event, Outcome):
                outcome = event
        if outcome is not None and outcome.status in _STOPPED:
            # Slurm stopped all processes of the job and will go on to kill or requeue it. If this one ended now, the
            # run would count as failed.
            threading.Event().wait(_HOLD_SECONDS)
        return outcome

    def checkpoint(self) -> Any:
        """What submitit puts back into the queue when Slurm announces the end: the same, which resumes."""
        if self._process is not None:
            stop([self._process], _GRACE_SECONDS)
        return importlib.import_module("submitit").helpers.DelayedSubmission(replace(self))

    def found(self) -> list[Found]:
        """What the run found at each of its starts so far."""
        if not self.starts.is_file():
            return []
        whole = self.starts.read_text().rpartition("\n")[0]  # the last line may be half written
        lines = [line.split() for line in whole.splitlines()]
        return [Found(self.job, cast("RunState", state), node) for state, node in lines]

    def _events(self) -> Iterator[Event]:
        def launch(job: Job, environment: Mapping[str, str]) -> Process:
            self._process = launch_tethered(job, environment)
            return self._process

        patience = PATIENCE_SECONDS if self.starts.is_file() else 0.0
        return events_on_node(self.job, self.folder, self.environment, patience, launch)


def parameters(options: SlurmOptions, processes: int = 1) -> dict[str, Any]:
    """The options of a run of several processes as submitit's `AutoExecutor.update_parameters` takes them."""
    cpus = processes * options.cpus
    others = {key: value for key, value in options.sbatch.items() if value is not False}
    return {
        "name": str(others.pop("job-name", "nlora")),
        "timeout_min": options.time,
        "gpus_per_node": processes * options.gpus,
        "cpus_per_task": cpus,
        "mem_gb": None if options.memory is None else options.memory / 2**30,
        "slurm_partition": options.partition,
        "slurm_array_parallelism": options.array or _NO_LIMIT,
        "slurm_signal_delay_s": WARNING_SECONDS,
        # Since Slurm 22.05, srun no longer takes this over from sbatch.
        "slurm_srun_args": [f"--cpus-per-task={cpus}"],
        "slurm_additional_parameters": {
            "requeue" if options.requeue else "no-requeue": True,
            **others,
        },
    }


def _outcome(handle: Any, task: SlurmTask) -> Outcome | None:
    """The outcome of a job that has ended; None if the run was left alone."""
    submitit = importlib.import_module("submitit")
    try:
        outcome: Outcome | None = handle.result()
    except (
        submitit.core.utils.FailedJobError
    ) as error:  # an exception in the task; between two rules, its traceback
        parts = re.split(r"^-{10,}$", str(error), flags=re.MULTILINE)
        return Outcome(task.job, 1, 0.0, _last_line(parts[min(1, len(parts) - 1)]))
    except submitit.core.utils.UncompletedJobError:  # Slurm ended it
        said = _last_line(handle.stderr() or "")
        state = f"Slurm: job {handle.job_id}: {handle.state.lower()}"
        return Outcome(task.job, 1, 0.0, f"{state}; {said}" if said else state)
    return outcome


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")
