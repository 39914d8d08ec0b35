"""Sweeps on a Ray cluster, with a module in its place that imitates it."""

from __future__ import annotations

import re
import sys
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from nlora.cli import sweep as command
from nlora.cli.sweep import runner_of
from nlora.errors import InputErrors, MissingExtraError
from nlora.sweeps.expand import read_sweep
from nlora.sweeps.file import RayOptions
from nlora.sweeps.processes import Job
from nlora.sweeps.runners import Outcome, RayRunner
from sweeps import Machine, sweep_with, write_sweep

# Ray


class FakeRay(types.ModuleType):
    """The part of Ray that is used: tasks run when they are waited for, the last one first."""

    class exceptions:  # noqa: N801 - Ray's name
        class RayError(Exception):
            pass

    def __init__(self) -> None:
        super().__init__("ray")
        self.asked: dict[str, Any] = {}
        self.canceled: list[Any] = []
        self.started = False

    def is_initialized(self) -> bool:
        return self.started

    def init(self) -> None:
        self.started = True

    def remote(self, **asked: Any) -> Any:
        self.asked = asked
        return lambda function: types.SimpleNamespace(remote=lambda *arguments: lambda: function(*arguments))

    def wait(self, references: list[Any], num_returns: int) -> tuple[list[Any], list[Any]]:
        return references[-1:], references[:-1]

    def get(self, reference: Any) -> Any:
        return reference()

    def cancel(self, reference: Any) -> None:
        self.canceled.append(reference)


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeRay]:
    module = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", module)
    return module


def test_ray_runs_each_job_as_a_task(tmp_path: Path, ray: FakeRay, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine()
    machine.fails = {"penalty-seed1": "error: no room"}
    monkeypatch.setattr("nlora.sweeps.runners.launch_command", machine.launch)
    file = write_sweep(tmp_path, seeds=[1], runner="ray", ray={"gpus": 0.5, "cpus": 4})
    console = Console(width=200, force_terminal=False)
    with console.capture() as captured:
        good = sweep_with(runner_of(read_sweep(file), None), file, console=console)
    assert not good
    assert (ray.started, ray.asked) == (True, {"num_gpus": 0.5, "num_cpus": 4, "max_retries": 0})
    assert machine.started == ["penalty-seed1", "plain-seed1"]
    assert machine.environments == [{"OMP_NUM_THREADS": "4"}] * 2
    told = captured.get()
    assert re.search(r"penalty-seed1: failed after \S+ s: no room", told)
    assert "plain-seed1: done" in told
    with pytest.raises(InputErrors, match="--jobs: is for runner: local"):
        command.sweep(file, jobs=2)


def test_a_lost_worker_is_a_failed_run_and_stopping_cancels_the_rest(
    tmp_path: Path, ray: FakeRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(job: Job, folder: str, environment: Mapping[str, str]) -> Outcome:
        raise FakeRay.exceptions.RayError("the node died\nmore")

    monkeypatch.setattr("nlora.sweeps.runners.run_in_folder", lost)
    jobs = [Job(name, (), tmp_path / name) for name in "abc"]
    outcomes = RayRunner(RayOptions()).outcomes(jobs, lambda job: job.name != "b")
    first = next(outcomes)
    assert (first.job.name, first.status, first.error) == ("c", 1, "ray: the node died")
    outcomes.close()
    assert len(ray.canceled) == 1


def test_without_ray_the_command_that_installs_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"ray is not installed; pip install ray"):
        command.sweep(write_sweep(tmp_path, runner="ray"))
    assert not (tmp_path / "out").exists()
