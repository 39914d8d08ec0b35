"""Several processes that learn runs together, with the environment that a launcher gives them."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from forked_processes import forked
from helpers import learn

LIMIT_SECONDS = 300
Runs = Sequence[tuple[Path, Sequence[str]] | tuple[Path, Sequence[str], int]]
"""Configuration, overrides, and after which saved step of the second task to stop as if killed."""


def environments(size: int, launcher: str) -> list[dict[str, str]]:
    """What torchrun or srun would give each of `size` processes."""
    if launcher == "srun":  # the port follows from the number of the job
        common = {"SLURM_STEP_NUM_TASKS": str(size), "SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_ID": "0",
                  "SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_TASKS_PER_NODE": str(size)}  # fmt: skip
        own = ("SLURM_PROCID", "SLURM_LOCALID")
        return [os.environ | common | dict.fromkeys(own, str(rank)) for rank in range(size)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1",
              "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}  # fmt: skip
    return [os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(size)]


def learn_together(size: int, runs: Runs, folder: Path, launcher: str) -> None:
    """Learn the runs with several processes. launcher: torchrun or srun."""
    folder.mkdir()
    group = [
        forked(learn_in_turn, runs, folder, environment=environment, out=folder / f"{rank}.txt")
        for rank, environment in enumerate(environments(size, launcher))
    ]
    try:
        for process in group:
            process.join(LIMIT_SECONDS)
    finally:
        for process in group:
            process.kill()
            process.join()
    told = "\n".join((folder / f"{rank}.txt").read_text() for rank in range(size))
    assert [process.exitcode for process in group] == [0] * size, told


class Killed(BaseException):
    """Nothing in nlora catches it or saves anything because of it."""


@contextmanager
def killed_after(step: int) -> Iterator[None]:
    """A block that ends once this step of the second task is saved, in all processes alike."""
    from nlora.training.resumable_trainer import ResumableTrainer

    save = ResumableTrainer._save_checkpoint

    def save_and_die(self: Any, *args: Any) -> None:
        save(self, *args)
        if self.state.global_step == step and self._points._folder.name.startswith("2-"):
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ResumableTrainer, "_save_checkpoint", save_and_die)
        with pytest.raises(Killed):
            yield


def without_extras(folder: Path) -> None:
    """Leave out of this process's runs what takes a third of a tiny one's time: the preflight check and the report.

    A sharded model is checked, and what this process holds of it is written to folder/held-<rank>.jsonl: the number of
    its parameters here, and in all.
    """
    from nlora.api import learn
    from nlora.models.fast_paths import default_paths
    from nlora.models.inspection import is_sharded
    from nlora.runs import preflight

    real = preflight.preflight

    def check(backbone: Any, *given: Any, **options: Any) -> Any:
        if not is_sharded(backbone.model):
            return default_paths(backbone.model)
        whole = list(backbone.model.parameters())
        here = [p.to_local() if hasattr(p, "to_local") else p for p in whole]
        with (folder / f"held-{os.environ['RANK']}.jsonl").open("a") as file:
            file.write(json.dumps([sum(p.numel() for p in some) for some in (here, whole)]) + "\n")
        return real(backbone, *given, **options)

    learn.finish_run = lambda run, *_: run.write_summary()
    preflight.preflight = check


def learn_in_turn(runs: Runs, folder: Path) -> None:
    """In one process of a group: learn these runs."""
    without_extras(folder)
    for config, overrides, *stop in runs:
        with killed_after(*stop) if stop else nullcontext():
            learn(config, *overrides)
