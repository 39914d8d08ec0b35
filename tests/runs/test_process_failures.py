"""One of a run's processes dies, raises or is stopped: all end, one text says why, and the run can go on."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from process_group import LIMIT_SECONDS
from safetensors.torch import load_file

from helpers import learn, write_config

TinyModel = Callable[[str], Path]
pytestmark = pytest.mark.slow

# At the first step of the second stage, one process does what FAILURE says.
FAILS = '''
"""Incremental LoRA that fails."""
import os, signal, time
from nlora.methods.base import Method

class Fails(Method):
    def begin_task(self, adapter, earlier):
        self.fails = earlier and os.environ.get("RANK", "") == os.environ.get("FAILING_RANK")

    def penalty(self, adapter):
        if not self.fails:
            return None
        if os.environ["FAILURE"] == "raise":
            raise ValueError("this process broke")
        if os.environ["FAILURE"] == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        os.kill(os.getppid(), signal.SIGTERM)  # the launcher
        time.sleep(60)
'''


class Told(NamedTuple):
    status: int
    out: str
    err: str


@pytest.fixture
def config(tmp_path: Path, tiny_model: TinyModel) -> Path:
    (tmp_path / "fails.py").write_text(FAILS)
    train = {"epochs": 1, "batch_size": 8, "learning_rate": 5e-3}
    return write_config(tmp_path, tiny_model("llama"), method=str(tmp_path / "fails.py"), train=train)


def run(config: Path, *arguments: str, **environment: str) -> Told:
    """`nlora run CONFIG ARGUMENTS --processes 2`."""
    command = [sys.executable, "-m", "nlora", "run", str(config), *arguments, "--processes", "2"]
    done = subprocess.run(
        command,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT_SECONDS,
    )
    return Told(done.returncode, done.stdout, done.stderr)


def adapter(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "outputs/2-animals/adapter/adapter_model.safetensors")


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_ends_all_and_the_run_goes_on_with_another_number(config: Path, rank: int) -> None:
    told = run(config, FAILURE="kill", FAILING_RANK=str(rank))
    folder = config.parent / "run"
    assert told.status == 1
    assert told.err.count("error") == 1, told.err
    assert (
        f"error: process {rank} was killed by SIGKILL (out of memory?); the same command resumes" in told.err
    )
    assert [f.name for f in (folder / "outputs").iterdir() if f.name[0] != "."] == ["1-colors"]
    assert learn(config).status == "complete"
    whole = learn(config, f"output_dir={config.parent / 'whole'}")
    assert whole.status == "complete"
    for name, tensor in adapter(config.parent / "whole").items():
        torch.testing.assert_close(adapter(folder)[name], tensor, rtol=0, atol=1e-5)


def test_an_error_of_one_process_is_told_once_and_logged(config: Path) -> None:
    told = run(config, FAILURE="raise", FAILING_RANK="1")
    assert told.status == 1
    assert told.err == (
        "internal error: ValueError: this process broke\nrun again with --debug for the traceback\n"
    )
    log = (config.parent / "run/logs/train_and_infer.log").read_text()
    assert log.count("ERROR nlora: ValueError: this process broke\nTraceback") == 1
    assert "gloo" not in log
    assert sorted(f.name for f in (config.parent / "run/outputs").iterdir()) == ["1-colors"]


def test_a_mistake_is_told_once_before_anything_is_written(config: Path) -> None:
    told = run(config, "train.epoch=2", "sed=1")
    assert told.status == 2
    assert told.err == (
        "2 errors:\ntrain.epoch=2: unknown key; did you mean 'epochs'?\nsed=1: unknown key; did you mean 'seed'?\n"
    )
    assert told.out == ""
    assert not (config.parent / "run").exists()


def test_sigterm_to_the_launcher_ends_all_and_says_how_to_go_on(config: Path) -> None:
    told = run(config, FAILURE="stop", FAILING_RANK="1")
    folder = config.parent / "run"
    assert told.status == 130
    assert (
        told.err == f"stopped; {folder} keeps 1 of 2 stages; the same command resumes with stage 2, animals\n"
    )
    assert sorted(f.name for f in (folder / "outputs").iterdir()) == ["1-colors"]
