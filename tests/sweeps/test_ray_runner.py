"""Sweeps on a real Ray of this machine, started once for all tests of this file."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from nlora.cli import sweep as command
from nlora.errors import InputErrors, MissingExtraError
from nlora.runs.layout import RUN_FILE
from nlora.runs.lock import LOCK_FILE, is_held
from nlora.sweeps import ray_runner
from nlora.sweeps.cluster_options import RayOptions
from nlora.sweeps.node import environment
from nlora.sweeps.processes import Job
from nlora.sweeps.ray_runner import RayRunner, connected, reason
from nlora.sweeps.runners import Event, Events, Found, Lost, Outcome
from sweeps import (
    endless_job,
    environment_of,
    is_running,
    job,
    parent_of,
    running,
    swept_with,
    two_runs,
    until,
    write_sweep,
)

pytestmark = pytest.mark.slow
HERE = socket.gethostname()


@pytest.fixture(scope="module")
def ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Ray with two cores and, as it believes, two GPUs. It writes a token to the home folder: not to the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        patch.delenv("RAY_ADDRESS", raising=False)
        small = {"object_store_memory": 80 * 2**20, "include_dashboard": False}
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in the background of a script
        module = connected(None, num_cpus=2, num_gpus=2, **small)
        signal.signal(signal.SIGINT, before)
        yield module
        module.shutdown()


def test_a_run_is_a_task_with_a_log_an_outcome_and_the_name_of_its_node(ray: Any, tmp_path: Path) -> None:
    jobs = [job("good", tmp_path, "ls", "recipes"), job("bad", tmp_path, "ls", "nothing")]
    events = list(RayRunner(RayOptions()).events(jobs))
    assert {(e.job.name, e.state, e.node) for e in events if isinstance(e, Found)} == {
        ("good", "new", HERE),
        ("bad", "new", HERE),
    }
    outcomes = {e.job.name: e for e in events if isinstance(e, Outcome)}
    assert (outcomes["good"].status, outcomes["good"].error) == (0, "")
    assert outcomes["bad"].status == 2
    assert re.fullmatch(rf"nlora ls: there is no list of 'nothing'.*\(on {HERE}\)", outcomes["bad"].error)
    assert jobs[0].log.read_text().startswith("$ ")


def test_a_folder_is_looked_at_when_the_turn_of_its_run_comes(ray: Any, tmp_path: Path) -> None:
    """Each run takes both cores, so the second waits; meanwhile another process starts it."""
    jobs = [job(name, tmp_path, "ls", "recipes") for name in "ab"]
    events = RayRunner(RayOptions(cpus=2)).events(jobs)
    first = next(events)
    assert isinstance(first, Found)
    other = next(j for j in jobs if j != first.job)
    other.folder.mkdir()
    (other.folder / RUN_FILE).touch()
    with FileLock(other.folder / LOCK_FILE):
        rest = list(events)
    assert [(type(e), e.job) for e in rest] == [(Outcome, first.job), (Found, other)]
    assert rest[-1].state == "elsewhere"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        (RayOptions(), {"CPU": 1.0, "GPU": 1.0}),
        (RayOptions(gpus=0, cpus=2, memory=2**30), {"CPU": 2.0, "memory": float(2**30)}),
    ],
)
def test_a_run_gets_what_it_asks_for(
    ray: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: RayOptions, asked: dict[str, float]
) -> None:
    """null GPUs are one GPU where there are some, and a run that asks for none sees none."""

    def told(job: Job, folder: str, environment: Mapping[str, str], patience: float) -> Iterator[Outcome]:
        import json

        import ray

        yield Outcome(
            job, 0, 0.0, json.dumps([ray.get_runtime_context().get_assigned_resources(), environment])
        )

    monkeypatch.setenv("NLORA_CACHE", "a folder")
    monkeypatch.setenv("HF_TOKEN", "a secret")
    monkeypatch.setattr(ray_runner, "events_on_worker", told)
    (outcome,) = RayRunner(options).events([job("a", tmp_path)])
    assert isinstance(outcome, Outcome)
    resources, environment = json.loads(outcome.error)
    assert resources == asked
    assert (environment["NLORA_CACHE"], environment["HF_TOKEN"]) == ("a folder", "a secret")
    assert ("CUDA_VISIBLE_DEVICES" in environment) == (options.gpus == 0)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel ends orphans on Linux only")
def test_a_dead_worker_leaves_no_orphan_and_its_run_resumes_until_it_is_stopped(
    ray: Any, tmp_path: Path, tiny_model: Any
) -> None:
    endless, waits = endless_job(tmp_path, tiny_model), job("waits", tmp_path, "ls")
    events = RayRunner(RayOptions(cpus=2)).events([endless, waits])
    assert next(events) == Found(endless, "new", HERE)
    until(lambda: is_running(endless))
    run = running(endless)
    assert environment_of(run)["CUDA_VISIBLE_DEVICES"] in ("0", "1")
    os.kill(parent_of(run), signal.SIGKILL)
    lost = next(events)
    assert isinstance(lost, Lost)
    assert lost.why.startswith("The worker died unexpectedly")
    assert lost.why.endswith("(1 of 3 retries)")
    until(lambda: not Path(f"/proc/{run}").exists())
    told = [event for event in events_until(events, endless) if event.job == endless]
    assert told == [Found(endless, "unfinished", HERE)]
    until(lambda: is_running(endless))
    events.close()
    assert not is_held(endless.folder)
    assert endless.log.read_text().splitlines()[-1].startswith("stopped")


def test_a_run_whose_worker_dies_every_time_has_failed(
    ray: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(job: Job, folder: str, environment: Mapping[str, str], patience: float) -> Iterator[Outcome]:
        import os

        os.kill(os.getpid(), 9)
        yield Outcome(job, 0, 0.0)

    monkeypatch.setattr(ray_runner, "events_on_worker", dies)
    lost, outcome = RayRunner(RayOptions(retries=1)).events([job("a", tmp_path)])
    assert isinstance(lost, Lost)
    assert isinstance(outcome, Outcome)
    assert outcome.status == 1
    assert outcome.error.startswith("Ray: The worker died unexpectedly")


def test_a_sweep_ends_with_the_table_of_a_local_one(
    ray: Any, tmp_path: Path, tiny_model: Any, local_rows: list[dict[str, str]]
) -> None:
    told, rows = swept_with(RayRunner(RayOptions()), two_runs(tmp_path, tiny_model))
    assert rows == local_rows
    assert re.search(rf"good-seed1: started on {HERE}\n", told)
    assert re.search(rf"bad-seed1: failed after .*no_such_module.* \(on {HERE}\)", told)


# What is wrong before anything starts


def test_a_cluster_that_is_not_there_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        free = server.getsockname()[1]
    file = write_sweep(tmp_path, runner="ray", ray={"address": f"127.0.0.1:{free}"})
    with pytest.raises(InputErrors) as caught:
        command.sweep(file)
    (line,) = str(caught.value).splitlines()
    assert re.search(
        rf"sweep\.yaml:\d+: ray\.address: no Ray cluster answers at 127\.0\.0\.1:{free} \(.*refused", line
    )
    with pytest.raises(
        InputErrors, match=r"ray\.address=ray://a:1: the address of a Ray cluster must be host:port"
    ):
        command.sweep(file, ["ray.address=ray://a:1"])
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{free}")
    with pytest.raises(InputErrors, match=rf"runner: no Ray cluster answers at 127\.0\.0\.1:{free} "):
        command.sweep(write_sweep(tmp_path, runner="ray"))
    assert not (tmp_path / "out").exists()


def test_a_run_that_never_fits_is_refused(ray: Any, tmp_path: Path) -> None:
    file = write_sweep(tmp_path, runner="ray", ray={"gpus": 3, "cpus": 2.5})
    with pytest.raises(InputErrors) as caught:
        command.sweep(file)
    assert [problem.what for problem in caught.value.problems] == [
        "a run needs 3, and the Ray cluster has 2",
        "a run needs 2.5, and the Ray cluster has 2",
    ]
    with pytest.raises(InputErrors, match="--jobs: is for runner: local"):
        command.sweep(file, jobs=2)


def test_parts_of_several_gpus_are_refused(ray: Any) -> None:
    for options, processes, need in ((RayOptions(gpus=1.5), 1, "1.5"), (RayOptions(gpus=0.75), 2, "1.5")):
        with pytest.raises(
            InputErrors, match=rf"ray\.gpus: a run needs {need} GPUs; Ray gives a run a part of one"
        ):
            RayRunner(options, processes)


def test_a_ray_that_takes_too_long_to_start_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**options: Any) -> None:
        raise Exception("The current node timed out during startup.")  # noqa: TRY002 - as Ray does

    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", init)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(InputErrors, match=r"runner: no connection to Ray: The current node timed out"):
        connected(None)


@pytest.mark.parametrize(("given", "threads"), [({}, "8"), ({"OMP_NUM_THREADS": "1"}, "1")])
def test_the_threads_of_a_submitted_driver_are_not_those_of_its_runs(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], threads: str
) -> None:
    """`ray job submit` starts the sweep in an actor without cores, for which Ray sets one thread."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"runtime_env": {"env_vars": given}}))
    variables = ray_runner._variables()
    assert {**variables, **environment(8, 1, variables)}["OMP_NUM_THREADS"] == threads
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR")
    assert environment(8, 1, ray_runner._variables()) == {}


def test_without_ray_the_command_that_installs_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"ray is not installed; pip install ray"):
        command.sweep(write_sweep(tmp_path, runner="ray"))
    assert not (tmp_path / "out").exists()


def test_the_reason_of_an_error_is_its_telling_line() -> None:
    kind = type("RayTaskError(ValueError)", (Exception,), {})
    head = "\x1b[36mray::events_on_node()\x1b[39m (pid=1, ip=10.0.0.1)\n"
    assert reason(kind(f"{head}  File ...\nValueError: no\n")) == "ValueError: no"
    assert reason(RuntimeError("\x1b[31mThe node died.\x1b[0m\nSee the logs")) == "The node died."
    module = reason(kind(f"{head}ModuleNotFoundError: No module named 'nlora.sweeps'\n"))
    assert module == "nlora is not installed on a node; install the same version on all of them"


def events_until(events: Events, job: Job) -> Iterator[Event]:
    """The events up to the next one of a job."""
    for event in events:
        yield event
        if event.job == job:
            return
