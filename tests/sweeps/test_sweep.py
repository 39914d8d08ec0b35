"""Sweeps at work: no run stops the others, and the same command resumes. Runs are imitated (`sweeps.Machine`)."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from rich.console import Console

from nlora.cli import app
from nlora.cli.sweep import jobs_of, print_plan, run_sweep, runner_of
from nlora.errors import InputErrors, RunError
from nlora.runs import atomic
from nlora.runs.lock import IN_USE, LOCK_FILE
from nlora.sweeps.check import check_sweep, state_of
from nlora.sweeps.expand import read_sweep
from nlora.sweeps.processes import Job, best_launch, launch_command
from nlora.sweeps.runners import LocalRunner, Outcome, environments, visible_gpus
from sweeps import FIVE_TASKS, Ended, Machine, Running, job, sweep_with, swept, table, write_sweep


def test_a_failed_run_stops_no_other_and_is_the_only_one_repeated(tmp_path: Path) -> None:
    file, machine = write_sweep(tmp_path), Machine()
    machine.fails = {"plain-seed1": "error: amazon.json:7: not JSON"}
    good, told = swept(file, machine)
    assert not good
    assert machine.started == ["plain-seed1", "penalty-seed1", "plain-seed2", "penalty-seed2"]
    out = tmp_path / "out"
    assert "two: 4 runs, 4 new" in told
    assert re.search(
        r"plain-seed1: failed after \S+ s: amazon\.json:7: not JSON \(0 done, 1 failed, 3 left\)", told
    )
    assert re.search(
        r"penalty-seed2: done in \S+ s, average accuracy 70\.0 \(3 done, 1 failed, 0 left\)", told
    )
    ending = (
        f"1 of 4 runs failed:\nplain-seed1: amazon.json:7: not JSON (in {out / 'logs' / 'plain-seed1.log'})"
    )
    assert ending in told
    rows = {row["run"]: row for row in table(out)}
    assert {name: row["seeds"] for name, row in rows.items()} == {"penalty": "1 2", "plain": "2"}
    assert (out / "table.md").read_text().startswith("| run | seeds | AA |")
    assert r"\toprule" in (out / "table.tex").read_text()
    machine.fails, machine.started = {}, []
    good, told = swept(file, machine)
    assert good
    assert machine.started == ["plain-seed1"]
    assert "two: 4 runs, 3 complete, 1 new" in told
    assert "penalty-seed1: complete, left alone" in told
    rows = {row["run"]: row for row in table(out)}
    assert rows["plain"]["seeds"] == "1 2"


def test_a_table_that_cannot_be_written_does_not_hide_how_the_runs_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_text = atomic.write_text

    def full(path: Path, text: str) -> None:
        if path.stem == "table":
            raise RunError(f"{path}: cannot be written: No space left on device")
        write_text(path, text)

    monkeypatch.setattr(atomic, "write_text", full)
    file, machine = write_sweep(tmp_path), Machine()
    machine.fails = {"plain-seed1": "error: amazon.json:7: not JSON"}
    good, told = swept(file, machine)
    assert not good
    first, second, last = told.splitlines()[-3:]
    assert (first, second.partition(" (in")[0]) == (
        "1 of 4 runs failed:",
        "plain-seed1: amazon.json:7: not JSON",
    )
    assert last == f"error: {tmp_path / 'out' / 'table.md'}: cannot be written: No space left on device"
    machine.fails = {}
    with pytest.raises(RunError, match=r"table\.md: cannot be written: No space left"):
        swept(file, machine)


def test_an_unfinished_run_goes_on(tmp_path: Path) -> None:
    file, machine = write_sweep(tmp_path, seeds=[1]), Machine()
    machine.stops_after = {"penalty-seed1": 1}
    good, told = swept(file, machine)
    assert not good
    assert "killed by SIGKILL (out of memory?)" in told
    assert "penalty (nlora), stopped after 1 of 2" in told
    assert state_of(tmp_path / "out" / "penalty-seed1") == "unfinished"
    machine.stops_after = {}
    good, told = swept(file, machine)
    assert (good, "penalty-seed1: resumed" in told) == (True, True)
    assert state_of(tmp_path / "out" / "penalty-seed1") == "complete"


def test_what_another_process_runs_is_left_alone(tmp_path: Path) -> None:
    file, machine = write_sweep(tmp_path, seeds=[1]), Machine()
    machine.stops_after = {"plain-seed1": 1}
    swept(file, machine)
    machine.stops_after, machine.started = {}, []
    with FileLock(tmp_path / "out" / "plain-seed1" / LOCK_FILE):
        good, told = swept(file, machine)
    assert good
    assert machine.started == []
    assert "plain-seed1: running in another process, left alone" in told


@pytest.mark.parametrize(
    ("status", "said", "is_elsewhere"), [(2, IN_USE, True), (2, "broken", False), (-9, IN_USE, False)]
)
def test_a_run_that_another_sweep_began_a_moment_before_has_not_failed(
    tmp_path: Path, status: int, said: str, is_elsewhere: bool
) -> None:
    """Both found it new. The slower one ends with an error, since the folder is in use.

    A run that is killed has failed, though its other processes may still hold the folder.
    """
    file, machine = write_sweep(tmp_path, seeds=[1]), Machine()
    machine.stops_after = {"plain-seed1": 1}
    swept(file, machine)
    locks: list[FileLock] = []

    def launch(job: Job, environment: Mapping[str, str]) -> Any:
        if job.name == "plain-seed1":
            locks.append(FileLock(job.folder / LOCK_FILE))
            locks[0].acquire()
            job.log.parent.mkdir(exist_ok=True)
            job.log.write_text(f"error: {job.folder}: {said}; wait for it, or choose another output_dir\n")
            return Ended(status)
        return machine.launch(job, environment)

    console = Console(width=200, force_terminal=False, color_system=None)
    with console.capture() as captured:
        good = sweep_with(LocalRunner(1, environments(1, []), launch), file, console=console)
    told = captured.get()
    locks[0].release()
    assert good == is_elsewhere
    assert ("plain-seed1: running in another process, left alone" in told) == is_elsewhere
    assert ("failed" in told) != is_elsewhere


def test_scores_before_training_are_added_to_a_finished_run(tmp_path: Path) -> None:
    file, machine = write_sweep(tmp_path, seeds=[1]), Machine()
    swept(file, machine)
    machine.started = []
    swept(file, machine)
    assert machine.started == []
    checked = read_sweep(file, ["evaluate.zero_shot=true"])
    checked = replace(checked, configs=check_sweep(checked))
    run_sweep(checked, machine.runner(), Console())
    assert machine.started == ["plain-seed1", "penalty-seed1"]


def test_a_dry_run_prints_the_commands_and_writes_nothing(tmp_path: Path) -> None:
    console = Console(width=20, force_terminal=False)
    file = write_sweep(tmp_path, base="demo", variants={"it's": {}})
    with pytest.raises(InputErrors, match="becomes part of a folder's"):
        check_sweep(read_sweep(file))
    file = write_sweep(tmp_path, base="demo", set={"lora.targets": ["q", "v"], "data": "a folder"})
    with console.capture() as captured:
        print_plan(read_sweep(file, ["seeds=[1]"]), console)
    lines = captured.get().splitlines()
    out = tmp_path / "out"
    assert lines[:2] == [
        "plain-seed1 (new)",
        f"""  nlora run demo 'data=a folder' 'lora.targets=["q", "v"]' method=inclora name=plain seed=1 """
        f"output_dir={out / 'plain-seed1'}",
    ]
    assert lines[-1] == "2 runs, 2 new"
    assert not out.exists()
    with console.capture() as captured:
        print_plan(read_sweep(write_sweep(tmp_path)), console)
    *_, command, note, _counted = captured.get().splitlines()
    assert note.endswith(", with the keys under base, is written when the sweep starts")
    assert note.split(",")[0] in command


def test_ctrl_c_stops_what_runs_and_shows_what_there_is(tmp_path: Path) -> None:
    """As do SIGTERM and SIGHUP, which leave no run behind without its sweep."""
    file = write_sweep(tmp_path, seeds=[1, 2, 3])
    machine, running = Machine(), [Running(), Running()]

    def launch(job: Job, environment: Mapping[str, str]) -> Any:
        if not machine.started:
            return machine.launch(job, environment)
        machine.started.append(job.name)
        if len(machine.started) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return running[len(machine.started) - 2]

    console = Console(width=200, force_terminal=False)
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)]
    with console.capture() as captured, pytest.raises(KeyboardInterrupt, match="with what is missing"):
        sweep_with(LocalRunner(2, [], launch), file, console=console)
    # The signal came while the third one was being started.
    assert running[0].heard == ["terminate"]
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)] == handlers
    told = captured.get()
    assert "plain (inclora)" in told
    assert (tmp_path / "out" / "table.md").is_file()


def test_jobs_run_side_by_side_each_at_a_place_of_its_own(tmp_path: Path) -> None:
    places = [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}]
    running: dict[str, Running] = {}
    devices: dict[str, str] = {}

    def launch(job: Job, environment: Mapping[str, str]) -> Running:
        devices[job.name] = environment["CUDA_VISIBLE_DEVICES"]
        running[job.name] = Running()
        if len(running) == 2:
            running["b"].ended.set()  # the second one ends first, and its place is taken by the third
        return running[job.name]

    jobs = [job(name, tmp_path) for name in "abc"]
    events = LocalRunner(2, places, launch).events(jobs)
    outcomes = (event for event in events if isinstance(event, Outcome))
    assert next(outcomes).job.name == "b"
    assert "c" not in running
    running["a"].ended.set()
    assert next(outcomes).job.name == "a"
    assert devices == {"a": "0", "b": "1", "c": "1"}
    events.close()
    assert running["c"].heard == ["terminate"]


def test_a_command_that_cannot_be_started_is_a_failed_run(tmp_path: Path) -> None:
    def launch(job: Job, environment: Mapping[str, str]) -> Running:
        raise OSError(12, "Cannot allocate memory")

    jobs = [job(name, tmp_path) for name in "ab"]
    events = LocalRunner(1, [], launch).events(jobs)
    outcomes = [event for event in events if isinstance(event, Outcome)]
    assert [outcome.status for outcome in outcomes] == [1, 1]
    assert "Cannot allocate memory" in outcomes[0].error


def test_cores_and_gpus_are_shared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("nlora.sweeps.runners.cores", lambda: 8)
    assert environments(1, []) == [{}]
    assert environments(3, []) == [{"OMP_NUM_THREADS": "2"}] * 3
    assert environments(16, [])[0] == {"OMP_NUM_THREADS": "1"}
    assert [place["CUDA_VISIBLE_DEVICES"] for place in environments(3, ["4", "5"])] == ["4", "5", "4"]
    # Two runs of two processes, with a GPU each.
    assert environments(2, ["4", "5", "6", "7"], processes=2) == [
        {"CUDA_VISIBLE_DEVICES": devices, "OMP_NUM_THREADS": "2"} for devices in ("4,5", "6,7")
    ]
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert environments(2, []) == [{}, {}]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, GPU-a")
    assert visible_gpus() == ["2", "GPU-a"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_gpus() == []
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert visible_gpus() == []
    tool = tmp_path / "nvidia-smi"
    tool.write_text(
        "#!/bin/sh\necho 'GPU 0: X (UUID: GPU-1)'\necho '  MIG 1g'\necho 'GPU 1: X (UUID: GPU-2)'\n"
    )
    tool.chmod(0o755)
    assert visible_gpus() == ["0", "1"]


# The command


def test_the_exit_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = Machine()
    monkeypatch.setattr("nlora.cli.sweep.runner_of", lambda sweep, jobs: machine.runner())
    file = write_sweep(tmp_path)

    def call(*arguments: str) -> int:
        monkeypatch.setattr("sys.argv", ["nlora", "sweep", *arguments])
        with pytest.raises(SystemExit) as stop:
            app.main()
        return int(stop.value.code or 0)

    machine.fails = {"plain-seed2": "error: x"}
    assert call(file, "--jobs", "2") == 1
    machine.fails = {}
    assert call(file) == 0
    assert call(file, "seeds=[x]") == 2
    assert call(file, "--jobs", "0") == 2
    assert call(file, "--dry-run") == 0
    assert "4 runs, 4 complete" in capsys.readouterr().out


def test_the_shipped_sweep_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = read_sweep(str(FIVE_TASKS))
    configs = check_sweep(sweep)
    counts: dict[str, int] = {}
    for run in sweep.runs:
        counts[run.name] = counts.get(run.name, 0) + 1
    assert counts == {
        **dict.fromkeys(["inclora", "update_l1", "factor_l1", "olora", "disjoint"], 3),
        **dict.fromkeys(["seqlora", "ewc", "lwf", "replay", "ella", "pertask", "mtl"], 1),
    }
    (tasks,) = {tuple(task.name for task in config.tasks) for config in configs.values()}
    assert tasks == ("QQP", "SST-2", "dbpedia", "agnews", "amazon")
    methods = {run.name: run.overrides for run in sweep.runs}
    assert {"method=nlora", "method.penalty=factor_l1"} <= set(methods["factor_l1"])
    for name in set(counts) - {"update_l1", "factor_l1"}:
        assert f"method={name}" in methods[name]


def test_runs_of_several_processes_are_commands_with_a_gpu_for_each_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = read_sweep(write_sweep(tmp_path, processes=2))
    assert all(job.arguments[-2:] == ("--processes", "2") for job in jobs_of(sweep))
    assert best_launch(2) is launch_command
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises(InputErrors, match=r"processes: 2 processes need a GPU each, but only 1 can be seen"):
        runner_of(sweep, None)
    made: list[Any] = []
    monkeypatch.setattr("nlora.sweeps.runners.LocalRunner", lambda *given: made.append(given))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    runner_of(sweep, None)  # the third GPU is not enough for a second run
    assert made == [(1, [{"CUDA_VISIBLE_DEVICES": "0,1"}], launch_command)]
