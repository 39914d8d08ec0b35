"""One of a run's processes dies, raises or is stopped: all end, one text says why, and the run can go on."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from process_group import LIMIT_SECONDS, environments
from safetensors.torch import load_file

from forked_processes import forked, nlora
from helpers import learn, write_config
from nlora.api.learn import learn as learn_run
from nlora.config.load import load_config
from nlora.runs.events import Event, Progress

TinyModel = Callable[[str], Path]
pytestmark = pytest.mark.slow

# At the third step of the second stage, one process does what FAILURE says.
FAILS = '''
"""Incremental LoRA that fails."""
import os, signal, time
from nlora.methods.base import Method

class Slow(ValueError):
    def __str__(self):
        time.sleep(1)  # ten times as long as the launcher takes to notice that another process has ended
        return "this process broke"

class Fails(Method):
    def begin_task(self, adapter, earlier):
        self.fails = earlier and os.environ.get("RANK", "alone") in os.environ.get("FAILING_RANK", "")
        self.step = 0

    def extra_loss(self, logits, targets, before):
        return logits.sum() * float("nan") if self.fails and self.step == 2 and os.environ["FAILURE"] == "nan" else None

    def penalty(self, adapter):
        self.step += 1
        if not self.fails or self.step != 3 or os.environ["FAILURE"] == "nan":
            return None
        if os.environ["FAILURE"] == "raise":
            raise ValueError("this process broke")
        if os.environ["FAILURE"] == "raise slowly":
            raise Slow
        number = getattr(signal, os.environ["FAILURE"])
        handler = signal.getsignal(signal.SIGINT)  # a request to stop changes it, whatever signal made it
        os.kill(os.getpid() if "ALONE" in os.environ else os.getppid(), number)  # or the launcher
        end = time.monotonic() + 60
        while signal.getsignal(signal.SIGINT) is handler:
            if time.monotonic() > end:
                raise TimeoutError("the signal did not arrive")
            time.sleep(0.01)  # until the launcher has passed it on
'''


class Told(NamedTuple):
    status: int
    out: str
    err: str


@pytest.fixture
def config(tmp_path: Path, tiny_model: TinyModel) -> Path:
    (tmp_path / "fails.py").write_text(FAILS)
    train = {"epochs": 3, "batch_size": 8, "learning_rate": 5e-3}  # 2 steps an epoch
    return write_config(tmp_path, tiny_model("llama"), method=str(tmp_path / "fails.py"), train=train)


def run(config: Path, *arguments: str, **environment: str) -> Told:
    """`nlora run CONFIG ARGUMENTS --processes 2`. The launcher is forked, what it starts is not."""
    command = ("run", str(config), *arguments, "--processes", "2")
    return told_by(started(config.parent, *command, environment=os.environ | environment))


class Started(NamedTuple):
    process: ForkServerProcess
    out: Path
    err: Path


def started(folder: Path, *arguments: str, environment: Mapping[str, str]) -> Started:
    own = Path(tempfile.mkdtemp(dir=folder))
    out, err = own / "out.txt", own / "err.txt"
    return Started(forked(nlora, *arguments, environment=environment, out=out, err=err), out, err)


def told_by(one: Started) -> Told:
    one.process.join(LIMIT_SECONDS)
    assert one.process.exitcode is not None
    return Told(one.process.exitcode, one.out.read_text(), one.err.read_text())


def adapter(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "outputs/2-animals/adapter/adapter_model.safetensors")


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_ends_all_and_the_run_goes_on_with_another_number(config: Path, rank: int) -> None:
    told = run(config, FAILURE="SIGKILL", FAILING_RANK=str(rank), ALONE="")
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


def test_a_loss_that_is_not_finite_is_told_with_the_examples_of_its_process(config: Path) -> None:
    """Once the gradients are averaged, they are not finite in the other process either."""
    told = run(config, FAILURE="nan", FAILING_RANK="1")
    assert told.status == 2
    # 8 examples are in the step, 4 of them in each process.
    assert told.err.startswith(
        "error: stage 2, animals, step 3: the loss is nan, so the step was not taken; it was on the training examples "
    )
    assert told.err.endswith(" and 1 more; try a smaller train.learning_rate or method.weight\n")
    assert told.err.count("error") == 1


def test_the_process_that_tells_is_not_ended_by_the_exit_of_another(config: Path) -> None:
    told = run(config, FAILURE="raise slowly", FAILING_RANK="01")
    assert told.status == 1
    assert told.err == (
        "internal error: Slow: this process broke\nrun again with --debug for the traceback\n"
    )


def test_a_mistake_is_told_once_before_anything_is_written(config: Path) -> None:
    told = run(config, "train.epoch=2", "sed=1")
    assert told.status == 2
    assert told.err == (
        "2 errors:\ntrain.epoch=2: unknown key; did you mean 'epochs'?\nsed=1: unknown key; did you mean 'seed'?\n"
        "data and model are checked once the configuration is right\n"
    )
    assert told.out == ""
    assert not (config.parent / "run").exists()


@pytest.mark.parametrize(
    ("name", "to"),
    [("SIGTERM", "launcher"), ("SIGINT", "launcher"), ("SIGUSR1", "launcher"), ("SIGUSR1", "one")],
)
def test_a_signal_saves_the_step_ends_all_and_says_how_to_go_on(config: Path, name: str, to: str) -> None:
    """Whether the launcher gets it and passes it on, or a single process that is not the main one."""
    told = run(config, FAILURE=name, FAILING_RANK="1", **({"ALONE": ""} if to == "one" else {}))
    folder = config.parent / "run"
    kept = (
        f"{folder} keeps 1 of 2 stages, and 3 of 6 steps of stage 2, animals; the same command resumes there"
    )
    at_once = "\nstopping after this step; Ctrl-C again stops at once\n" if name == "SIGINT" else ""
    assert told.err == f"{at_once}stopped; {kept}\n"
    assert told.status == 130
    assert [f.name for f in (folder / "outputs").iterdir() if f.name[0] != "."] == ["1-colors"]
    assert [f.name for f in (folder / "resume/2-animals").iterdir()] == ["step-3"]
    events: list[Event] = []
    assert learn_run(load_config(config), Progress(events.append)).status == "complete"
    assert "stage 2: animals resumes after step 3 of 6" in [event.text for event in events]


def test_scoring_and_answering_under_a_launcher_is_refused_once(config: Path) -> None:
    asked = [["eval", str(config.parent)], ["predict", str(config.parent), "--task", "colors"]]
    groups = [
        [started(config.parent, *arguments, environment=own) for own in environments(2, "torchrun")]
        for arguments in asked
    ]
    for (command, *_), group in zip(asked, groups, strict=True):
        assert [(one.status, one.err) for one in map(told_by, group)] == [
            (
                2,
                f"error: nlora {command} takes one process, but a launcher has started 2; leave the launcher out "
                "(under Slurm, srun --ntasks=1)\n",
            ),
            (2, ""),
        ]
