"""Sweeps through submitit: real runs with its local executor, and the jobs that a sbatch is given.

The machine of the tests has no Slurm: a script in its place writes down what it is given.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nlora.cli import sweep as command
from nlora.errors import InputErrors, MissingExtraError
from nlora.runs.lock import is_held
from nlora.sweeps.cluster_options import SlurmOptions
from nlora.sweeps.runners import Found, Outcome
from nlora.sweeps.slurm_runner import SlurmRunner
from sweeps import endless_job, is_running, job, parent_of, running, swept_with, two_runs, until, write_sweep

pytestmark = pytest.mark.filterwarnings(
    # submitit's debug executor leaves its logs open, and its local one what it has canceled.
    "ignore:.*(_log.(out|err)|Popen.__del__):pytest.PytestUnraisableExceptionWarning"
)
HERE = socket.gethostname()
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="finds the run in /proc")


def runner(folder: Path, cluster: str) -> SlurmRunner:
    return SlurmRunner(SlurmOptions(gpus=0), folder / "slurm", cluster=cluster, poll_seconds=0.05)


@pytest.mark.slow
def test_a_sweep_ends_with_the_table_of_a_local_one(
    tmp_path: Path, tiny_model: Any, local_rows: list[dict[str, str]]
) -> None:
    told, rows = swept_with(runner(tmp_path, "local"), two_runs(tmp_path, tiny_model))
    assert rows == local_rows
    assert re.search(rf"good-seed1: started on {HERE}\n", told)
    assert re.search(rf"bad-seed1: failed after .*no_such_module.* \(on {HERE}\)", told)
    told, rows = swept_with(runner(tmp_path, "debug"), two_runs(tmp_path, tiny_model))
    assert rows == local_rows
    assert "good-seed1: complete, left alone" in told
    assert re.search(rf"bad-seed1: failed after .*no_such_module.* \(on {HERE}\)", told)


@pytest.mark.slow
@LINUX
def test_a_run_that_slurm_ends_goes_back_to_the_queue_and_resumes(tmp_path: Path, tiny_model: Any) -> None:
    endless = endless_job(tmp_path, tiny_model)
    events = runner(tmp_path, "local").events([endless])
    assert next(events) == Found(endless, "new", HERE)
    until(lambda: is_running(endless))
    run = running(endless)
    asked = time.monotonic()
    os.kill(run, signal.SIGUSR2)  # Slurm sends it to every process of the job
    os.kill(parent_of(run), signal.SIGUSR2)
    assert next(events) == Found(endless, "unfinished", HERE)
    seconds = time.monotonic() - asked  # killed after 90
    said = endless.log.read_text() + "".join(
        log.read_text() for log in (tmp_path / "slurm").glob("*_log.err")
    )
    assert "\nstopped" in said, f"it should have said so; it went back after {seconds:.0f} s"
    until(lambda: is_running(endless))
    events.close()
    until(lambda: not is_held(endless.folder))


def test_a_node_without_the_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nlora.sweeps.slurm_runner.make_logs", lambda jobs: None)
    (outcome,) = runner(tmp_path, "debug").events([job("a", tmp_path, "ls")])
    assert isinstance(outcome, Outcome)
    assert outcome.error.startswith(f"no folder {tmp_path / 'logs'} on {HERE}; a sweep on a cluster needs")


# A Slurm that only takes jobs


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """slurm(**tool="what it does in sh") -> the folder of these tools, the only ones on the PATH with the system's."""
    tools = tmp_path / "tools"
    tools.mkdir()
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")

    def make(**scripts: str) -> Path:
        for name, script in {"srun": "", "scancel": f"echo $1 >> {tools}/canceled", **scripts}.items():
            (tools / name).write_text(f"#!/bin/sh\n{script}\n")
            (tools / name).chmod(0o755)
        return tools

    return make


def test_the_jobs_are_an_array_with_the_options_of_the_file(
    slurm: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slurm ends both without a result. It passes the environment on by itself: no file keeps a token."""
    monkeypatch.setenv("HF_TOKEN", "a secret")
    monkeypatch.setattr("submitit.SlurmJob._results_timeout_s", 0)
    ended = "echo 'JobID|State|NodeList\n7_0|TIMEOUT|n1\n7_1|CANCELLED by 0|n2'"
    tools = slurm(sbatch="cat $1 > $(dirname $0)/given; echo Submitted batch job 7", sacct=ended)
    options = SlurmOptions.model_validate(
        {
            "partition": "gpu", "time": "1-12:30", "gpus": 2, "cpus": 4, "memory": "16GiB", "array": 1,
            "sbatch": {"account": "me", "--mail-type": "END", "exclusive": True, "overcommit": False},
        }
    )  # fmt: skip
    jobs = [job(name, tmp_path, "ls") for name in "ab"]
    outcomes = list(SlurmRunner(options, tmp_path / "slurm", poll_seconds=0.05).events(jobs))
    given = dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", (tools / "given").read_text(), re.MULTILINE))
    asked = {
        "partition": "gpu", "time": str(36 * 60 + 30), "gpus-per-node": "2", "cpus-per-task": "4",
        "mem": "16GB", "array": "0-1%1", "account": "me", "mail-type": "END", "exclusive": "", "requeue": "",
        "signal": "USR2@120",
    }  # fmt: skip
    assert asked.items() <= given.items()
    assert "overcommit" not in given
    files = [path.read_bytes() for path in (tmp_path / "slurm").iterdir()]
    assert len(files) >= 3
    assert not any(b"a secret" in content for content in files)
    assert "--cpus-per-task=4" in (tools / "given").read_text().split("srun", 1)[1]
    assert {o.job.name: o.error for o in outcomes if isinstance(o, Outcome)} == {
        "a": "Slurm: job 7_0: timeout",
        "b": "Slurm: job 7_1: cancelled by 0",
    }


def test_a_job_has_the_name_that_it_is_given_and_runs_beside_as_many_others_as_slurm_allows(
    slurm: Callable[..., Path], tmp_path: Path
) -> None:
    tools = slurm(sbatch="cat $1 > $(dirname $0)/given; echo Submitted batch job 9", sacct="exit 1")
    options = SlurmOptions.model_validate({"sbatch": {"job-name": "mine"}})
    SlurmRunner(options, tmp_path / "slurm")._submitted([job(str(i), tmp_path, "ls") for i in range(300)])
    script = (tools / "given").read_text()
    assert re.findall(r"^#SBATCH --job-name=(.*)$", script, re.MULTILINE) == ["mine"]
    assert "--array=0-299%300" in script


def test_another_sweep_of_the_folder_has_other_files(slurm: Callable[..., Path], tmp_path: Path) -> None:
    """What an older job notes of its starts is not what the newer sweep's runs found."""
    slurm(sbatch="echo Submitted batch job 9", sacct="exit 1")
    jobs = [job("a", tmp_path, "ls")]
    one, other = (
        next(iter(SlurmRunner(SlurmOptions(), tmp_path / "slurm")._submitted(jobs).values()))
        for _ in range(2)
    )
    one.starts.write_text("elsewhere n2\n")
    assert [found.node for found in one.found()] == ["n2"]
    assert other.found() == []


def test_stopping_cancels_what_is_left(slurm: Callable[..., Path], tmp_path: Path) -> None:
    waiting = "echo 'JobID|State|NodeList\n8_[0-1]|PENDING|'"
    tools = slurm(sbatch="echo Submitted batch job 8", sacct=waiting)

    class Stop(Exception):
        pass

    def interrupt(number: int, frame: Any) -> None:
        raise Stop

    events = SlurmRunner(SlurmOptions(), tmp_path / "slurm").events([job(name, tmp_path) for name in "ab"])
    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    try:
        with pytest.raises(Stop):
            next(events)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert (tools / "canceled").read_text().split() == ["8_0", "8_1"]


def test_what_sbatch_refuses_and_a_machine_without_it_are_one_line(
    slurm: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nlora: Callable[..., Any]
) -> None:
    tools = slurm(sbatch="echo 'sbatch: error: invalid partition specified: gpu' >&2; exit 1")
    file = write_sweep(tmp_path, runner="slurm", slurm={"partition": "gpu"})
    told = nlora("sweep", file)
    assert told.status == 2
    assert told.err == "error: slurm: sbatch refused the sweep: invalid partition specified: gpu\n"
    (tools / "sbatch").unlink()
    monkeypatch.setattr("shutil.which", lambda name: None)
    told = nlora("sweep", file, f"output_dir={tmp_path / 'other'}")
    assert told.status == 2
    assert re.fullmatch(
        r"error: \S*sweep\.yaml:\d+: runner: slurm: there is no sbatch on the PATH; .*\n", told.err
    )
    assert not (tmp_path / "other").exists()
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(MissingExtraError, match="submitit is not installed; pip install submitit"):
        command.sweep(file)


# Its keys


@pytest.mark.parametrize(
    ("written", "minutes"),
    [("90", 90), ("4:00:00", 240), ("30:00", 30), ("0:30", 1), ("1:30:01", 91), ("2-12", 3600), ("1-0:5", 1445),
     ("'1-0:0:1'", 1441)],
)  # fmt: skip
def test_times_are_read_as_slurm_reads_them(tmp_path: Path, written: str, minutes: int) -> None:
    """Also those that YAML takes for numbers of base 60."""
    from nlora.sweeps.file import read_file

    (tmp_path / "sweep.yaml").write_text(f"base: demo\nrunner: slurm\nslurm: {{time: {written}}}\n")
    assert read_file(str(tmp_path / "sweep.yaml")).values.slurm.time == minutes


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({"time": "soon"}, "slurm.time: must be minutes, or a text such as 4:00:00"),
        ({"memory": "16 Q"}, "slurm.memory: must be a number of bytes or a text such as 16G, not '16 Q'"),
        ({"memory": 32000}, "slurm.memory: 32000 is only 32,000 bytes; write a text such as 16G"),
        ({"sbatch": {"--partition": "x"}}, "slurm.sbatch: give 'partition' as slurm: {partition: ...}"),
        ({"sbatch": {"array": "1-3"}}, "slurm.sbatch: 'array' is set by the sweep itself; remove it"),
        ({"gpu": 1}, "slurm.gpu: unknown key; did you mean 'gpus'?"),
    ],
)
def test_a_wrong_key_is_named(tmp_path: Path, given: dict[str, Any], what: str) -> None:
    with pytest.raises(InputErrors) as caught:
        command.sweep(write_sweep(tmp_path, runner="slurm", slurm=given))
    (problem,) = caught.value.problems
    assert what in str(problem)
    assert problem.line
