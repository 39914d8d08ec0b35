"""Several processes that learn runs together, started as a launcher starts them.

As a program: `process_group.py FILE` learns the runs of a JSON file in turn: [[config, [override, ...]], ...].
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

LIMIT_SECONDS = 300
Runs = Sequence[tuple[Path, Sequence[str]]]


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


def start(size: int, arguments: Sequence[str], folder: Path, launcher: str) -> list[subprocess.Popen[bytes]]:
    """`python ARGUMENTS` in each process of a group; what each prints goes to folder/<rank>.txt."""
    processes = []
    for rank, environment in enumerate(environments(size, launcher)):
        with (folder / f"{rank}.txt").open("wb") as file:
            processes.append(
                subprocess.Popen(
                    [sys.executable, *arguments], env=environment, stdout=file, stderr=subprocess.STDOUT
                )
            )
    return processes


def learn_together(size: int, runs: Runs, folder: Path, launcher: str) -> None:
    """Learn the runs with several processes. launcher: torchrun or srun."""
    folder.mkdir()
    (folder / "runs.json").write_text(json.dumps([[str(config), list(texts)] for config, texts in runs]))
    processes = start(size, [__file__, str(folder / "runs.json")], folder, launcher)
    try:
        for process in processes:
            process.wait(LIMIT_SECONDS)
    finally:
        for process in processes:
            process.kill()
    told = "\n".join((folder / f"{rank}.txt").read_text() for rank in range(size))
    assert [process.returncode for process in processes] == [0] * size, told


def without_extras() -> None:
    """Leave out of this process's runs what takes a third of a tiny one's time: the preflight check and the report."""
    from nlora.api import learn
    from nlora.models.fast_paths import default_paths
    from nlora.runs import preflight

    learn.finish_run = lambda run, *_: run.write_summary()
    preflight.preflight = lambda backbone, *_, **__: default_paths(backbone.model)


def main() -> None:
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from helpers import learn

    without_extras()
    for config, overrides in json.loads(Path(sys.argv[1]).read_text()):
        learn(config, *overrides)


if __name__ == "__main__":
    main()
