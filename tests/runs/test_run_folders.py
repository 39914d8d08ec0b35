"""Each run in a folder of its own: none inside another, none hidden, and no advice that would delete one."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from test_sequence import assert_same_files

from helpers import learn, write_config
from nlora.cli import demo
from nlora.cli.cp import cp
from nlora.config.load import load_config, recipe_text
from nlora.errors import InputErrors, RunError
from nlora.report.comparison import read_runs
from nlora.runs import sequence
from nlora.runs.plan import Plan
from nlora.sweeps.check import check_sweep
from nlora.sweeps.expand import read_sweep
from nlora.sweeps.processes import Job

TinyModel = Callable[[str], Path]


@pytest.fixture
def small_demo(tmp_path: Path, tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`nlora demo` is that of a tiny model; the current folder is the returned one."""
    config = write_config(
        tmp_path, tiny_model("llama"), output_dir="runs/demo/demo", method="nlora", name="demo"
    )
    monkeypatch.setattr(demo, "DEMO", str(config))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def count_trainings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The methods of the stages that this process trains from now on."""
    trained: list[str] = []
    train_stage = sequence.train_stage

    def counted(plan: Plan, *more: Any) -> Any:
        trained.append(plan.config.method.name)
        return train_stage(plan, *more)

    monkeypatch.setattr(sequence, "train_stage", counted)
    return trained


def test_the_demo_writes_its_runs_into_the_folder_that_is_asked_for(
    small_demo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What two of them have in common is learned once, and each has the files that it would have by itself."""
    trained = count_trainings(monkeypatch)
    for _ in range(2):  # the second time, there is nothing to do
        demo.demo(["output_dir='mine too'", "train.epochs=1"])
    assert trained == ["nlora"] * 2 + ["inclora"] * 2 + ["replay"]
    for method in demo.DEMO_METHODS:
        assert json.loads((small_demo / "mine too" / method / "summary.json").read_text())["method"] == method
    assert not (small_demo / "runs").exists()
    learn(demo.DEMO, "method=replay", "name=replay", "output_dir=alone", "train.epochs=1")
    assert_same_files(small_demo / "mine too/replay", small_demo / "alone")


@pytest.mark.parametrize("fails", [False, True])
def test_with_two_threads_the_demo_learns_two_runs_at_once(
    small_demo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], fails: bool
) -> None:
    """Each as it would by itself. What the other process leaves undone is done here."""
    trained = count_trainings(monkeypatch)
    threads = [torch.get_num_threads()]
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    if fails:
        monkeypatch.setattr(Job, "command", (sys.executable, "-c", "raise SystemExit(3)"))
    demo.demo(["output_dir='mine too'", "train.epochs=1"])
    assert trained == ["inclora"] * 2 + ["nlora"] * (2 * fails) + ["replay"]
    assert (threads[1], threads[-1]) == (1, 2)
    printed = capsys.readouterr().out
    assert "at the same time, by another process; its log: mine too/logs/nlora.log" in printed
    rows = [
        line.split()[0]
        for line in printed.splitlines()
        if line.split()[1:2] in (["nlora"], ["inclora"], ["replay"])
    ]
    assert rows[-3:] == ["nlora", "inclora", "replay"]
    learn(demo.DEMO, "method=nlora", "name=nlora", "output_dir=alone", "train.epochs=1")
    assert_same_files(small_demo / "mine too/nlora", small_demo / "alone")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["method.weight=1e-5"], r"^method\.weight=1e-5: "),  # which inclora does not have
        (
            ["method=olora"],
            r"nlora demo runs nlora, inclora and replay; to run one of your own: nlora run demo method=olora",
        ),
        (["train.epohcs=1"], "did you mean 'epochs'"),
    ],
)
def test_what_the_demos_second_run_cannot_have_is_told_before_the_first(
    small_demo: Path, overrides: list[str], said: str
) -> None:
    with pytest.raises(InputErrors, match=said):
        demo.demo(overrides)
    assert not (small_demo / "runs").exists()


def test_a_second_demo_folder_of_another_configuration_is_told_before_the_first_trains(
    small_demo: Path,
) -> None:
    learn(demo.DEMO, "method=inclora", "name=inclora", "output_dir=runs/demo/inclora", "seed=9")
    with pytest.raises(RunError, match="started with another configuration"):
        demo.demo()
    assert not (small_demo / "runs/demo/nlora").exists()


def test_a_copied_recipe_is_called_after_its_file(tmp_path: Path) -> None:
    for recipe in ("demo", "order_1"):
        target = tmp_path / f"{recipe} of 1: mine.yaml"
        cp(recipe, str(target))
        config = load_config(target).config
        assert (config.name, config.output_dir) == (target.stem, f"runs/{target.stem}")
        theirs, ours = yaml.safe_load(recipe_text(recipe)), yaml.safe_load(target.read_text())
        for values in (theirs, ours):
            values.pop("name"), values.pop("output_dir", None)
        assert theirs == ours


def test_no_run_begins_around_others_or_inside_of_one(tmp_path: Path, tiny_model: TinyModel) -> None:
    config = write_config(tmp_path, tiny_model("llama"))
    for name in ("runs/a", "runs/b"):
        learn(config, f"output_dir={tmp_path / name}", "train.epochs=0.5")
    before = sorted(tmp_path.rglob("*"))
    inside = tmp_path / "runs/a/outputs/x"
    for folder, said in (
        (
            tmp_path / "runs",
            f"{tmp_path / 'runs'} holds other runs ({tmp_path / 'runs/a'}, {tmp_path / 'runs/b'})",
        ),
        (tmp_path, f"{tmp_path} holds other runs ({tmp_path / 'runs/a'}, "),
        (inside, f"{inside} is inside the run {tmp_path / 'runs/a'}; choose another folder"),
    ):
        with pytest.raises(InputErrors) as caught:
            learn(config, f"output_dir={folder}")
        assert said in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_somebodys_own_run_yaml_is_no_run(tmp_path: Path, tiny_model: TinyModel) -> None:
    config = write_config(tmp_path, tiny_model("llama"), output_dir=str(tmp_path / "runs/a"))
    config.rename(tmp_path / "run.yaml")
    assert learn(tmp_path / "run.yaml").status == "complete"
    with pytest.raises(RunError, match=r"give another folder$"):
        learn(tmp_path / "run.yaml", f"output_dir={tmp_path}")


def test_runs_that_lie_in_a_run_are_neither_hidden_nor_up_for_deletion(
    tmp_path: Path, tiny_model: TinyModel
) -> None:
    """As earlier versions made them: runs/demo with runs/demo/nlora in it."""
    config = write_config(tmp_path, tiny_model("llama"), name="outer")
    learn(config, f"output_dir={tmp_path / 'inner'}", "name=inner")
    learn(config)
    (tmp_path / "inner").rename(tmp_path / "run/inner")
    assert [summary.name for _, summary in read_runs([tmp_path / "run"])] == ["outer", "inner"]
    for folder, advice in ((tmp_path / "run", False), (tmp_path / "run/inner", True)):
        with pytest.raises(RunError) as caught:
            learn(config, f"output_dir={folder}", "seed=77")
        assert ("delete" in str(caught.value)) == advice


def test_a_sweep_inside_of_a_run_is_refused_before_it_starts(tmp_path: Path, tiny_model: TinyModel) -> None:
    config = write_config(tmp_path, tiny_model("llama"))
    learn(config, "train.epochs=0.5")
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text(f"base: {config}\nseeds: [1, 2]\noutput_dir: {tmp_path / 'run' / 'sweep'}\n")
    with pytest.raises(InputErrors) as caught:
        check_sweep(read_sweep(str(sweep), []))
    (problem,) = caught.value.problems
    assert problem.where == f"{sweep}:3: output_dir"
    assert "is inside the run" in problem.what
