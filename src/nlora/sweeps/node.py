"""What runs on a node of a cluster: one run, in the sweep's folder, that ends with whatever started it there."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from nlora.runs.lock import is_held
from nlora.sweeps.processes import Job, Launch, launch_tethered
from nlora.sweeps.runners import Event, Found, LocalRunner, Outcome

PATIENCE_SECONDS = 120.0
"""How long a run that is tried again waits for the lock of its folder: a file system frees a dead node's late."""
_POLL_SECONDS = 0.5


def environment(cpus: float, gpus: float, given: Mapping[str, str]) -> dict[str, str]:
    """The environment variables that give a run its GPUs, and a thread for each core unless `given` says otherwise."""
    threads = {} if "OMP_NUM_THREADS" in given else {"OMP_NUM_THREADS": str(max(1, int(cpus)))}
    # Neither Ray nor Slurm hides the GPUs of a node from a run that asks for none.
    return threads if gpus else {**threads, "CUDA_VISIBLE_DEVICES": ""}


def make_logs(jobs: list[Job]) -> None:
    """Make the folder of the logs, by which `events_on_node` knows that a node shares this file system."""
    for job in jobs:
        job.log.parent.mkdir(parents=True, exist_ok=True)


def events_on_node(
    job: Job,
    folder: str,
    environment: Mapping[str, str],
    patience: float = 0.0,
    launch: Launch = launch_tethered,
) -> Iterator[Event]:
    """Run a job as a command on this node: whether it starts, then its outcome, both with the node's name.

    folder: the current one of the sweep. patience: how long to wait, in seconds, while another process has the lock.
    """
    node = socket.gethostname()
    logs = Path(folder, job.log.parent)
    if not logs.is_dir():
        why = f"no folder {logs} on {node}; a sweep on a cluster needs a folder that all its nodes share"
        yield Outcome(job, 1, 0.0, why)
        return
    os.chdir(folder)
    deadline = time.monotonic() + patience
    while is_held(job.folder) and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
    for event in LocalRunner(1, [environment], launch).events([job]):
        if isinstance(event, Found):
            yield replace(event, node=node)
        elif isinstance(event, Outcome):
            yield replace(event, error=event.error and f"{event.error} (on {node})")
