"""Sweeps: what a file stands for, all mistakes before anything starts, and that no run stops the others.

Commands are not run but imitated (`Machine`), except in the last test.
"""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import threading
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from filelock import FileLock
from rich.console import Console

from helpers import write_config
from nlora import cli
from nlora.config_file import load_config
from nlora.errors import InputErrors, MissingExtraError
from nlora.run_dir import LOCK_FILE, RunDir, write_stage_record
from nlora.summary import StageRecord
from nlora.sweep import sweep_command
from nlora.sweep_check import check_sweep, state_of
from nlora.sweep_file import RayOptions
from nlora.sweep_runners import (
    Job,
    LocalRunner,
    Outcome,
    RayRunner,
    environments,
    last_error,
    stop,
    visible_gpus,
)
from nlora.sweep_runs import Sweep, read_sweep

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
        with RunDir.open(loaded.config, {}, loaded.base_folder) as run:
            for stage, task in enumerate(loaded.config.tasks, start=1):
                if run.is_committed(stage):
                    continue
                if stage > self.stops_after.get(job.name, stage):
                    return Ended(-9)
                row = [70.0] * stage + [None] * (len(loaded.config.tasks) - stage)
                with run.stage(stage, task.name) as folder:
                    record = StageRecord(stage=stage, task=task.name, row=tuple(row), train_seconds=1,
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
        good = sweep_command(
            file, overrides, jobs=None, dry_run=False, console=console, runner=machine.runner(places)
        )
    return good, captured.get()


def table(folder: Path) -> list[dict[str, str]]:
    """The rows of the CSV table that a sweep has written."""
    return list(csv.DictReader((folder / "table.csv").read_text().splitlines()))


# What a file stands for


def test_variants_times_seeds_the_first_seed_of_all_first(tmp_path: Path) -> None:
    sweep = read_sweep(write_sweep(tmp_path))
    assert names(sweep) == ["plain-seed1", "penalty-seed1", "plain-seed2", "penalty-seed2"]
    configs = check_sweep(sweep)
    config = configs[tmp_path / "out" / "penalty-seed2"]
    assert (config.name, config.seed, config.method.name, config.method.options) == (
        "penalty", 2, "nlora", {"weight": 1e-5},
    )  # fmt: skip
    assert config.output_dir == str(tmp_path / "out" / "penalty-seed2")
    assert (config.model, config.train.batch_size) == ("tiny", 8)
    assert configs[tmp_path / "out" / "plain-seed1"].method.options == {}


def test_seeds_of_a_variant_are_its_own(tmp_path: Path) -> None:
    variants = {"plain": "inclora", "once": {"method": "nlora", "seeds": [7]}, "base": None}
    sweep = read_sweep(write_sweep(tmp_path, variants=variants))
    assert names(sweep) == ["plain-seed1", "once-seed7", "base-seed1", "plain-seed2", "base-seed2"]
    assert check_sweep(sweep)[tmp_path / "out" / "base-seed1"].method.name == "nlora"  # the default


def test_later_places_win_and_mappings_are_merged(tmp_path: Path) -> None:
    """set, then the variant, then the grid, then the command line."""
    base = {**BASE, "method": {"name": "nlora", "penalty": "factor_l1"}, "lora": {"r": 2, "alpha": 4}}
    file = write_sweep(
        tmp_path,
        base=base,
        set={"train": {"epochs": 3, "batch_size": 4}, "lora.r": 3},
        variants={
            "keeps": {"method.weight": 0.5, "lora": {"dropout": 0.25}},
            "other": {"method": {"name": "inclora"}, "train.epochs": 5},
        },
        grid={"lora.r": [6, 7]},
        seeds=[1],
    )
    configs = check_sweep(read_sweep(file, ["train.learning_rate=5e-4"]))
    out = tmp_path / "out"
    keeps, other = configs[out / "keeps-r=6-seed1"], configs[out / "other-r=7-seed1"]
    assert keeps.method.options == {"penalty": "factor_l1", "weight": 0.5}
    assert other.method.options == {}
    assert (keeps.train.epochs, other.train.epochs, keeps.train.batch_size) == (3, 5, 4)
    assert (keeps.lora.r, other.lora.r, keeps.lora.alpha, keeps.lora.dropout) == (6, 7, 4, 0.25)
    assert {c.train.learning_rate for c in configs.values()} == {5e-4}
    assert check_sweep(read_sweep(file, ["train.epochs=9"]))[out / "other-r=7-seed1"].train.epochs == 9


def test_the_order_of_keys_does_not_matter(tmp_path: Path) -> None:
    variants = {"v": {"method.weight": 0.5, "method": "nlora"}}
    configs = check_sweep(read_sweep(write_sweep(tmp_path, variants=variants)))
    assert {config.method.options["weight"] for config in configs.values()} == {0.5}


def test_a_grid_is_every_combination_with_the_values_in_the_names(tmp_path: Path) -> None:
    grid = {"lora.r": [4, 8], "lora.targets": [["q", "v"], None], "train.learning_rate": [1e-3]}
    sweep = read_sweep(write_sweep(tmp_path, variants=None, grid=grid, seeds=[5]))
    assert names(sweep) == [
        f"r={r}-targets={targets}-learning_rate=0.001-seed5" for r in (4, 8) for targets in ("q,v", "null")
    ]
    configs = check_sweep(sweep)
    assert [(c.lora.r, c.lora.targets) for c in configs.values()] == [
        (4, ("q", "v")), (4, None), (8, ("q", "v")), (8, None),
    ]  # fmt: skip
    assert {config.name for config in configs.values()} == {n.removesuffix("-seed5") for n in names(sweep)}


def test_several_bases_are_in_the_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are found in the current folder, and beside the sweep's file."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    for name in ("short", "long"):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({**BASE, "name": name}))
    sweep = read_sweep(write_sweep(tmp_path, base=["short.yaml", "long.yaml", "demo"], variants=["inclora"]))
    assert names(sweep)[:3] == ["short-inclora-seed1", "long-inclora-seed1", "demo-inclora-seed1"]
    configs = check_sweep(sweep)
    assert configs[tmp_path / "out" / "demo-inclora-seed2"].data == "embedded"
    assert configs[tmp_path / "out" / "long-inclora-seed2"].name == "long-inclora"


def test_overrides_reach_the_files_own_keys(tmp_path: Path) -> None:
    file = write_sweep(tmp_path)
    sweep = read_sweep(file, ["seeds=[3]", "variants.plain=nlora", "output_dir=there", "set.lora.r=2"])
    assert names(sweep) == ["plain-seed3", "penalty-seed3"]
    config = check_sweep(sweep)[Path("there/plain-seed3")]
    assert (config.method.name, config.lora.r) == ("nlora", 2)
    with pytest.raises(InputErrors, match=r"seed=3: the sweep sets 'seed' of each run; give seeds"):
        check_sweep(read_sweep(file, ["seed=3"]))


def test_the_seed_of_a_run_is_the_default_where_none_is_given(tmp_path: Path) -> None:
    sweep = read_sweep(write_sweep(tmp_path, variants=None, seeds=None, output_dir=None))
    assert [run.folder for run in sweep.runs] == [Path("runs/two/two-seed42")]


# Mistakes


def test_every_mistake_of_every_run_is_told_at_once_with_its_key(tmp_path: Path) -> None:
    file = write_sweep(
        tmp_path,
        base={**BASE, "train": {"epohcs": 1}},
        variants={
            "a": {"method": "nlora", "method.wieght": 3},
            "b": "nlroa",
            "c/d": "ewc",
            "e": {"train": {"lr": 1}, "seed": 3},
            "f": {"seeds": [1, 1]},
            "g": 5,
        },
        grid={"train.batch_size": [8, "x"]},
        runner="locl",
        sedes=[3],
    )
    with pytest.raises(InputErrors) as caught:
        check_sweep(read_sweep(file, ["train.max_samples=ten"]))
    told = {problem.where: problem.what for problem in caught.value.problems}
    text = Path(file).read_text().splitlines()
    # By key: how its line begins, and what is said of it.
    expected = {
        "base.train.epohcs": ("epohcs:", "unknown key; did you mean 'epochs'?"),
        "variants.a.method.wieght": ("method.wieght:", "unknown key; did you mean 'weight'?"),
        "variants.b": ("b:", "unknown method 'nlroa'; did you mean 'nlora'?"),
        "variants.c/d": ("c/d:", "becomes a folder's"),
        "variants.e.train.lr": ("lr:", "unknown key"),
        "variants.e.seed": ("seed:", "give seeds: [1, 2, 3] at the top level"),
        "variants.f.seeds": ("    seeds:", "a seed is there twice"),
        "variants.g": ("g:", "must be a mapping of keys"),
        "grid.train.batch_size": ("train.batch_size:", "must be a whole number >= 1, not 'x'"),
        "runner": ("runner:", "must be local or ray, not 'locl'; did you mean 'local'?"),
        "sedes": ("sedes:", "unknown key; did you mean 'seeds'?"),
    }
    for key, (begin, what) in expected.items():
        (line,) = [
            i for i, line in enumerate(text, 1) if line.startswith(begin) or line.strip().startswith(begin)
        ]
        assert what in told[f"{file}:{line}: {key}"], key
    assert told["train.max_samples=ten"].startswith("must be a whole number")
    assert len(told) == len(expected) + 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"base": None}, "base: the key is missing"),
        ({"base": []}, "base: must be a recipe, a file, a list of them, or the keys of a run"),
        ({"base": "dmeo"}, "no such file, and no recipe of that name; did you mean 'demo'?"),
        ({"base": {"model": "tiny"}}, "base.tasks: the key is missing"),
        ({"base": {**BASE, "name": "x"}}, "base.name: the sweep sets 'name' of each run"),
        ({"set": {"output_dir": "x"}}, "set.output_dir: the sweep sets 'output_dir'"),
        ({"grid": {"seed": [1]}}, "grid.seed: the sweep sets 'seed'"),
        ({"grid": {"lora.r": []}}, "grid.lora.r: must be a list of values that is not empty"),
        ({"grid": {"method.weight": [1]}}, "grid.method.weight: a variant sets this key as well"),
        ({"variants": "inclora"}, "variants: must be a mapping of names to what they set"),
        ({"seeds": [-1]}, "seeds: must be a list of different whole numbers"),
        ({"seeds": []}, "seeds: must be a list"),
        ({"grid": {"data": ["a b", "a_b"]}}, "two runs would be called plain-data=a_b-seed1"),
    ],
)
def test_a_wrong_file_is_one_clear_line(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    file = write_sweep(tmp_path, **changes)
    with pytest.raises(InputErrors) as caught:
        check_sweep(read_sweep(file))
    assert said in str(caught.value).splitlines()[0]
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_none(tmp_path: Path) -> None:
    for content, said in (
        (None, "no such file"),
        ("- a", "must hold the keys of a sweep"),
        ("a: [", "not YAML"),
    ):
        path = tmp_path / "x.yaml"
        if content is not None:
            path.write_text(content)
        with pytest.raises(InputErrors, match=said):
            read_sweep(str(path))


def test_a_folder_of_another_configuration_is_told_before_anything_starts(tmp_path: Path) -> None:
    machine = Machine()
    assert swept(write_sweep(tmp_path), machine)[0]
    with pytest.raises(InputErrors) as caught:
        swept(write_sweep(tmp_path, set={"train.epochs": 2}), machine)
    lines = str(caught.value).splitlines()
    assert len(lines) == 4
    assert lines[0].startswith(f"{tmp_path / 'out' / 'plain-seed1'}: was started with another configuration")
    assert "(train.epochs: 1.0 in the folder, 2.0 now)" in lines[0]
    assert len(machine.started) == 4


def test_a_key_that_the_folder_does_not_know_yet_stands_at_its_default(tmp_path: Path) -> None:
    machine = Machine()
    swept(write_sweep(tmp_path, seeds=[1]), machine)
    path = tmp_path / "out" / "plain-seed1" / "run.yaml"
    record = yaml.safe_load(path.read_text())
    del record["config"]["train"]["warmup_steps"]
    path.write_text(yaml.safe_dump(record))
    assert swept(write_sweep(tmp_path, seeds=[1]), machine)[0]
    with pytest.raises(InputErrors, match=r"train\.warmup_steps: 0 in the folder, 3 now"):
        swept(write_sweep(tmp_path, seeds=[1], set={"train.warmup_steps": 3}), machine)


# Running


def test_a_failed_run_stops_no_other_and_is_the_only_one_repeated(tmp_path: Path) -> None:
    file, machine = write_sweep(tmp_path), Machine()
    machine.fails = {"plain-seed1": "error: amazon.json:7: not JSON"}
    good, told = swept(file, machine)
    assert not good
    assert machine.started == ["plain-seed1", "penalty-seed1", "plain-seed2", "penalty-seed2"]
    out = tmp_path / "out"
    assert "two: 4 runs, 4 new" in told
    assert "plain-seed1: failed after 0 s: amazon.json:7: not JSON (0 done, 1 failed, 3 left)" in told
    assert "penalty-seed2: done in 0 s, average accuracy 70.0 (3 done, 1 failed, 0 left)" in told
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


def test_an_unfinished_run_goes_on(tmp_path: Path) -> None:
    file, machine = write_sweep(tmp_path, seeds=[1]), Machine()
    machine.stops_after = {"penalty-seed1": 1}
    good, told = swept(file, machine)
    assert not good
    assert "killed by SIGKILL; out of memory?" in told
    assert "penalty (nlora), running: 1 of 2 tasks" in told
    assert state_of(tmp_path / "out" / "penalty-seed1") == "unfinished"
    machine.stops_after = {}
    good, told = swept(file, machine)
    assert (good, "penalty-seed1: goes on" in told) == (True, True)
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


def test_a_dry_run_prints_the_commands_and_writes_nothing(tmp_path: Path) -> None:
    console = Console(width=20, force_terminal=False)
    file = write_sweep(tmp_path, base="demo", variants={"it's": {}})
    with pytest.raises(InputErrors, match="becomes a folder's"):
        sweep_command(file, [], jobs=None, dry_run=True, console=console)
    file = write_sweep(tmp_path, base="demo", set={"lora.targets": ["q", "v"], "data": "a folder"})
    with console.capture() as captured:
        assert sweep_command(file, ["seeds=[1]"], jobs=None, dry_run=True, console=console)
    lines = captured.get().splitlines()
    out = tmp_path / "out"
    assert lines[:2] == [
        "plain-seed1 (new)",
        f"""  nlora run demo 'data=a folder' 'lora.targets=["q", "v"]' method=inclora name=plain seed=1 """
        f"output_dir={out / 'plain-seed1'}",
    ]
    assert lines[-1] == "2 runs, 2 new"
    assert not out.exists()


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
    with console.capture() as captured, pytest.raises(KeyboardInterrupt):
        sweep_command(file, [], jobs=None, dry_run=False, console=console, runner=LocalRunner(2, [], launch))
    # The signal came while the third one was being started.
    assert running[0].heard == ["terminate"]
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)] == handlers
    told = captured.get()
    assert "stopped; the same command goes on with what is missing" in told
    assert "plain (inclora)" in told
    assert (tmp_path / "out" / "table.md").is_file()


def test_a_run_that_does_not_hear_is_killed() -> None:
    processes = [Running(), Running(deaf=True), Running()]
    stop(processes, grace_seconds=0.0)
    assert processes[1].heard == ["terminate", "kill"]
    assert processes[0].heard[:1] == processes[2].heard[:1] == ["terminate"]
    assert all(process.ended.is_set() for process in processes)


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

    jobs = [Job(name, (), tmp_path / name) for name in "abc"]
    outcomes = LocalRunner(2, places, launch).outcomes(jobs, lambda _: True)
    assert next(outcomes).job.name == "b"
    assert "c" not in running
    running["a"].ended.set()
    assert next(outcomes).job.name == "a"
    assert devices == {"a": "0", "b": "1", "c": "1"}
    outcomes.close()
    assert running["c"].heard == ["terminate"]


def test_a_command_that_cannot_be_started_is_a_failed_run(tmp_path: Path) -> None:
    def launch(job: Job, environment: Mapping[str, str]) -> Running:
        raise OSError(12, "Cannot allocate memory")

    jobs = [Job(name, (), tmp_path / name) for name in "ab"]
    outcomes = list(LocalRunner(1, [], launch).outcomes(jobs, lambda _: True))
    assert [outcome.status for outcome in outcomes] == [1, 1]
    assert "Cannot allocate memory" in outcomes[0].error


def test_cores_and_gpus_are_shared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("nlora.sweep_runners._cores", lambda: 8)
    assert environments(1, []) == [{}]
    assert environments(3, []) == [{"OMP_NUM_THREADS": "2"}] * 3
    assert environments(16, [])[0] == {"OMP_NUM_THREADS": "1"}
    assert [place["CUDA_VISIBLE_DEVICES"] for place in environments(3, ["4", "5"])] == ["4", "5", "4"]
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


@pytest.mark.parametrize(
    ("log", "status", "error"),
    [
        ("a\nerror: x.yaml:3: wrong\n", 2, "x.yaml:3: wrong"),
        ("2 errors:\na: one\nb: two\n", 2, "a: one (2 errors in all)"),
        ("internal error: KeyError: 'x'\nrun again with --debug for the traceback\n", 1,
         "internal error: KeyError: 'x'"),
        ("Traceback\nSegmentation fault\n\n", 139, "Segmentation fault"),
        ("an error in words\nlast\n", 1, "last"),
        ("", 1, "exit status 1, and nothing in the log"),
        ("error: not this\n", -9, "killed by SIGKILL; out of memory?"),
        ("", -11, "killed by SIGSEGV"),
    ],
)  # fmt: skip
def test_the_last_error_is_found_in_the_log(tmp_path: Path, log: str, status: int, error: str) -> None:
    before = "error: of the attempt before\n"
    (tmp_path / "log").write_text(before + log)
    assert last_error(tmp_path / "log", len(before), status) == error


# Ray


class FakeRay(types.ModuleType):
    """The part of Ray that is used: tasks run when they are waited for, the last one first."""

    class exceptions:  # noqa: N801 - Ray's name
        class RayError(Exception):
            pass

    def __init__(self) -> None:
        super().__init__("ray")
        self.asked: dict[str, Any] = {}
        self.cancelled: list[Any] = []
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
        self.cancelled.append(reference)


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeRay]:
    module = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", module)
    return module


def test_ray_runs_each_job_as_a_task(tmp_path: Path, ray: FakeRay, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine()
    machine.fails = {"penalty-seed1": "error: no room"}
    monkeypatch.setattr(LocalRunner.__init__, "__defaults__", (machine.launch,))
    file = write_sweep(tmp_path, seeds=[1], runner="ray", ray={"gpus": 0.5, "cpus": 4})
    console = Console(width=200, force_terminal=False)
    with console.capture() as captured:
        good = sweep_command(file, [], jobs=None, dry_run=False, console=console)
    assert not good
    assert (ray.started, ray.asked) == (True, {"num_gpus": 0.5, "num_cpus": 4, "max_retries": 0})
    assert machine.started == ["penalty-seed1", "plain-seed1"]
    assert machine.environments == [{"OMP_NUM_THREADS": "4"}] * 2
    assert "penalty-seed1: failed after 0 s: no room" in captured.get()
    assert "plain-seed1: done" in captured.get()
    with pytest.raises(InputErrors, match="--jobs: is for runner: local"):
        sweep_command(file, [], jobs=2, dry_run=False, console=console)


def test_a_lost_worker_is_a_failed_run_and_stopping_cancels_the_rest(
    tmp_path: Path, ray: FakeRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(job: Job, folder: str, environment: Mapping[str, str]) -> Outcome:
        raise FakeRay.exceptions.RayError("the node died\nmore")

    monkeypatch.setattr("nlora.sweep_runners.run_in_folder", lost)
    jobs = [Job(name, (), tmp_path / name) for name in "abc"]
    outcomes = RayRunner(RayOptions()).outcomes(jobs, lambda job: job.name != "b")
    first = next(outcomes)
    assert (first.job.name, first.status, first.error) == ("c", 1, "ray: the node died")
    outcomes.close()
    assert len(ray.cancelled) == 1


def test_without_ray_the_command_that_installs_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'nlora\[ray\]'"):
        sweep_command(write_sweep(tmp_path, runner="ray"), [], jobs=None, dry_run=False, console=Console())
    assert not (tmp_path / "out").exists()


# The command, and the real thing


def test_the_exit_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = Machine()
    monkeypatch.setattr("nlora.sweep._runner", lambda sweep, jobs: machine.runner())
    file = write_sweep(tmp_path)

    def call(*arguments: str) -> int:
        monkeypatch.setattr("sys.argv", ["nlora", "sweep", *arguments])
        with pytest.raises(SystemExit) as stop:
            cli.main()
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
    sweep = read_sweep(str(FIVE_TASKS), ["method=inclora"])  # whichever methods there are
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
    methods = {run.name: run.overrides for run in read_sweep(str(FIVE_TASKS)).runs}
    assert {"method=nlora", "method.penalty=factor_l1"} <= set(methods["factor_l1"])
    for name in set(counts) - {"update_l1", "factor_l1"}:
        assert f"method={name}" in methods[name]


@pytest.mark.slow
def test_a_real_sweep_with_a_run_that_fails(tmp_path: Path, tiny_model: Any) -> None:
    """One real run that is finished, and one that its own check refuses."""
    base = yaml.safe_load(write_config(tmp_path, tiny_model("llama")).read_text())
    for key in ("name", "seed", "output_dir"):
        del base[key]
    variants = {"good": {"method": "inclora"}, "bad": {"lora.targets": ["no_such_module"]}}
    file = write_sweep(tmp_path, base=base, variants=variants, seeds=[1])
    console = Console(width=200, force_terminal=False)
    with console.capture() as captured:
        good = sweep_command(file, [], jobs=1, dry_run=False, console=console)
    told, out = captured.get(), tmp_path / "out"
    assert not good
    assert state_of(out / "good-seed1") == "complete"
    assert "1 of 2 runs failed" in told
    assert "no_such_module" in told
    assert f"$ {sys.executable} -m nlora run {out}" in (out / "logs" / "good-seed1.log").read_text()
    (row,) = table(out)
    assert (row["run"], row["status"], row["seeds"]) == ("good", "complete", "1")
