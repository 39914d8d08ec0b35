"""What the tests of sweeps share: a sweep to write, and a machine that imitates `nlora run`."""

from __future__ import annotations

import csv
import re
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from helpers import write_config
from nlora.cli.sweep import run_sweep
from nlora.config.load import load_config
from nlora.runs.folder import RunFolder, write_stage_record
from nlora.runs.layout import RUN_FILE
from nlora.runs.lock import is_held
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
                with run.stage(stage) as folder:
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


def job(name: str, folder: Path, *arguments: str) -> Job:
    """A job whose log and run lie in `folder`; without arguments it has none to run."""
    return Job(name, arguments, folder / "logs" / f"{name}.log", folder / name)


def until(holds: Callable[[], bool], seconds: float = 120.0) -> None:
    """Wait for another process to make it so."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        threading.Event().wait(0.05)


# Runs on a cluster


def two_runs(folder: Path, tiny_model: Any) -> str:
    """The file of a sweep of a real run that finishes and one that its own check refuses."""
    variants = {"good": {"method": "inclora"}, "bad": {"lora.targets": ["no_such_module"]}}
    return real_sweep(folder, tiny_model, variants=variants, seeds=[1])


def real_sweep(folder: Path, tiny_model: Any, **changes: Any) -> str:
    """The file of a sweep of real runs of a tiny model."""
    base = yaml.safe_load(write_config(folder, tiny_model("llama")).read_text())
    for key in ("name", "seed", "output_dir"):
        del base[key]
    return write_sweep(folder, base=base, **changes)


def swept_with(runner: Runner, file: str) -> tuple[str, list[dict[str, str]]]:
    """What a sweep prints, and the rows of its table without what differs between two runs of the same."""
    console = Console(width=200, force_terminal=False, color_system=None)
    with console.capture() as captured:
        sweep_with(runner, file, console=console)
    rows = table(read_sweep(file).output_dir)
    return captured.get(), [
        {key: value for key, value in row.items() if not re.search("seconds|memory", key)} for row in rows
    ]


def endless_job(folder: Path, tiny_model: Any) -> Job:
    """A real run that goes on until it is stopped."""
    config = write_config(folder, tiny_model("llama"), train={"epochs": 1e6, "batch_size": 8})
    return job("endless", folder, "run", str(config), f"output_dir={folder / 'endless'}")


def is_running(job: Job) -> bool:
    return (job.folder / RUN_FILE).is_file() and bool(is_held(job.folder))


def running(job: Job) -> int:
    """The id of the process that runs it; on Linux only."""
    wanted = f"output_dir={job.folder}"
    (found,) = [
        int(path.parent.name)
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if wanted in path.read_text().split("\0")
    ]
    return found


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def environment_of(pid: int) -> dict[str, str]:
    variables = Path(f"/proc/{pid}/environ").read_text().split("\0")
    return dict(variable.split("=", 1) for variable in variables if variable)
