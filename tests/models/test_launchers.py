"""What the environment says about a run's processes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nlora.errors import RunError
from nlora.models.launchers import (
    Launch,
    from_slurm,
    launch_of,
    lone_note,
    refuse_other_models,
    threads,
)

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2",
            "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}  # fmt: skip
SRUN = {"SLURM_JOB_ID": "123456", "SLURM_STEP_ID": "2", "SLURM_STEP_NUM_TASKS": "8", "SLURM_NTASKS": "8",
        "SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
        "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NODELIST": "gpu[07-08]"}  # fmt: skip


def test_torchrun_says_which_process_this_is() -> None:
    assert launch_of(TORCHRUN) == Launch(rank=3, size=4, local_rank=1, local_size=2)


@pytest.mark.parametrize(
    "environment",
    [{}, {"WORLD_SIZE": "2"}, {"RANK": "0", "WORLD_SIZE": "1"}, {"RANK": "", "WORLD_SIZE": "2"}],
)
def test_a_process_that_nobody_launched_is_alone(environment: dict[str, str]) -> None:
    assert launch_of(environment) is None


def test_half_an_environment_is_refused() -> None:
    with pytest.raises(
        RunError, match="but MASTER_ADDR and MASTER_PORT are not; start the processes with torchrun"
    ):
        launch_of({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"})


@pytest.mark.parametrize(
    ("variable", "name"),
    [
        ("ACCELERATE_USE_FSDP", "FSDP"),
        ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed"),
        ("ACCELERATE_USE_PARALLELISM_CONFIG", "parallelism of its own"),
    ],
)
def test_a_split_model_is_refused_by_name(variable: str, name: str) -> None:
    refuse_other_models({variable: "false"})
    with pytest.raises(RunError, match=rf"{variable}: accelerate is configured for {name}.*--processes N"):
        refuse_other_models({variable: "true"})


def test_a_compiled_model_is_refused_by_name() -> None:
    for none in ("no", "NO"):
        refuse_other_models({"ACCELERATE_DYNAMO_BACKEND": none})
    with pytest.raises(RunError, match=r"is configured to compile the model.*--dynamo_backend no$"):
        refuse_other_models({"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"})


def test_a_lone_process_says_why_it_is_alone() -> None:
    # What `accelerate launch --cpu --num_processes 2` sets.
    cpu = {"ACCELERATE_USE_CPU": "True", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    assert "a single process" in str(lone_note(cpu))
    assert "WORLD_SIZE is 2, but no launcher" in str(lone_note({"WORLD_SIZE": "2"}))
    assert [lone_note(some) for some in ({}, TORCHRUN, {"ACCELERATE_USE_CPU": "True"})] == [None] * 3


def test_a_task_of_srun_gets_the_variables_of_torchrun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "scontrol").write_text('#!/bin/sh\necho "$@" >&2\necho gpu07\necho gpu08\n')
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    given = from_slurm(SRUN)
    assert launch_of(given) == Launch(rank=5, size=8, local_rank=1, local_size=4)
    assert given["MASTER_ADDR"] == "gpu07"
    assert given["MASTER_PORT"] == str(12_000 + (123_456 + 2) % 20_000)
    on_one = SRUN | {"SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_NODELIST": "gpu07"}
    assert from_slurm(on_one)["MASTER_ADDR"] == "127.0.0.1"
    assert from_slurm(SRUN | {"MASTER_ADDR": "head"})["MASTER_ADDR"] == "head"


def test_without_scontrol_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(RunError, match=r"scontrol cannot list the machines of gpu\[07-08\]; set MASTER_ADDR"):
        from_slurm(SRUN)


@pytest.mark.parametrize(
    "changes",
    [
        {"SLURM_STEP_NUM_TASKS": ""},  # the batch script itself
        {"SLURM_STEP_NUM_TASKS": "1"},
        TORCHRUN,  # torchrun in each task
    ],
)
def test_what_is_no_task_of_several_is_left_alone(changes: dict[str, str]) -> None:
    assert from_slurm(SRUN | changes) == {}


def test_a_process_gets_its_share_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nlora.models.launchers.cores", lambda: 16)
    assert [threads({}, 4), threads({}, 32), threads({"SLURM_CPUS_PER_TASK": "6"}, 4)] == [4, 1, 6]
