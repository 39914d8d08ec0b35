"""What the tests of sweeps share: a sweep to write, and a machine that imitates `nlora run`."""

from __future__ import annotations

import csv
import subprocess
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from nlora.cli.sweep import run_sweep
from nlora.config.load import load_config
from nlora.runs.folder import RunFolder, write_stage_record
from nlora.runs.summary import StageRecord
from nlora.sweeps.check import check_sweep
from nlora.sweeps.expand import Sweep, read_sweep
from nlora.sweeps.processes import Job
from nlora.sweeps.runners import LocalRunner, Runner, environments

BASE = {"model": "tiny", "data": "CL_Benchmark", "tasks": ["agnews", "amazon"], "train": {"batch_size": 8}}
FIVE_TASKS = Path(__file__).parents[1] / "benchmarks" / "five_tasks.yaml"


def write_sweep(folder: Path, **changes: Any) -> str:
    """Two variants of two seeds in `folder`/out; changes replace top-level keys, None takes one out."""
    values: dict[str, Any] = {
        "name": "two",
        "base": BASE,
        "variants": {"plain": "inclora", "penalty": {"method": "nlora", "method.weight": 1e-5}},
        "seeds": [1, 2],
        "output_dir": str(folder / "out"),
        **changes,
    }
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in values.items() if v is not None}, sort_keys=False))
    return str(path)


def names(sweep: Sweep) -> list[str]:
    return [run.folder.name for run in sweep.runs]


class Machine:
    """Imitates `nlora run`: each command writes what a run writes, or fails as told.

    fails: by run, its last words; stops_after: by run, the stages after which it dies without a word.
    """

    def __init__(self) -> None:
        self.started: list[str] = []
        self.environments: list[Mapping[str, str]] = []
        self.fails: dict[str, str] = {}
        self.stops_after: dict[str, int] = {}

    def launch(self, job: Job, environment: Mapping[str, str]) -> Ended:
        self.started.append(job.name)
        self.environments.append(environment)
        if said := self.fails.get(job.name):
            job.log.parent.mkdir(exist_ok=True)
            job.log.write_text(f"loading\n{said}\n")
            return Ended(2)
        assert job.command[1:4] == ("-m", "nlora", "run")
        loaded = load_config(job.command[4], job.command[5:])
        with RunFolder.open(loaded.config, {}, loaded.base_folder) as run:
            for stage, task in enumerate(loaded.config.tasks, start=1):
                if run.is_committed(stage):
                    continue
                if stage > self.stops_after.get(job.name, stage):
                    return Ended(-9)
                scores = {t.name: 70.0 for t in loaded.config.tasks[:stage]}
                with run.stage(stage, task.name) as folder:
                    record = StageRecord(stage=stage, task=task.name, scores=scores, train_seconds=1,
                                         evaluate_seconds=1, train_samples_per_second=1)  # fmt: skip
                    write_stage_record(folder, record)
                run.write_summary()
        return Ended(0)

    def runner(self, places: int = 1) -> LocalRunner:
        return LocalRunner(places, environments(places, []), self.launch)


class Ended:
    """A process that has ended with this status."""

    def __init__(self, status: int) -> None:
        self.status = status

    def wait(self, timeout: float | None = None) -> int:
        return self.status

    def terminate(self) -> None:
        raise AssertionError("it has ended")

    kill = terminate


class Running:
    """A process that goes on until it is stopped; `deaf`: until it is killed."""

    def __init__(self, deaf: bool = False) -> None:
        self.deaf, self.heard, self.ended = deaf, [], threading.Event()
        self.heard: list[str]

    def wait(self, timeout: float | None = None) -> int:
        if not self.ended.wait(timeout):
            raise subprocess.TimeoutExpired("run", timeout or 0)
        return -15

    def terminate(self) -> None:
        self.heard.append("terminate")
        if not self.deaf:
            self.ended.set()

    def kill(self) -> None:
        self.heard.append("kill")
        self.ended.set()


def swept(file: str, machine: Machine, *overrides: str, places: int = 1) -> tuple[bool, str]:
    console = Console(width=200, force_terminal=False, color_system=None)
    with console.capture() as captured:
        good = sweep_with(machine.runner(places), file, *overrides, console=console)
    return good, captured.get()


def sweep_with(runner: Runner, file: str, *overrides: str, console: Console) -> bool:
    """`nlora sweep` with this runner; whether no run failed."""
    sweep = read_sweep(file, overrides)
    check_sweep(sweep)
    return run_sweep(sweep, runner, console)


def table(folder: Path) -> list[dict[str, str]]:
    """The rows of the CSV table that a sweep has written."""
    return list(csv.DictReader((folder / "table.csv").read_text().splitlines()))
