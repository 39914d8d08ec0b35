"""`~` in a path is the home folder, wherever a path is written: no folder is ever called `~`."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import nlora as package
from helpers import learn, write_config
from nlora.config.load import load_config
from nlora.sweeps.check import check_sweep
from nlora.sweeps.expand import read_sweep
from sweeps import BASE, write_sweep


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home folder; the current folder is `work`, empty too."""
    for name in ("home", "work"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "home"


def test_a_run_is_whole_in_its_folder_below_home(
    tmp_path: Path, home: Path, tiny_model: Callable[[str], Path], nlora: Callable[..., Any]
) -> None:
    """Also what the Trainer writes, which expands `~` itself; and another run learns on from an adapter there."""
    one_epoch = {"epochs": 1, "batch_size": 8, "learning_rate": 5e-3}
    config = write_config(tmp_path, tiny_model("llama"), output_dir="~/runs/mine", train=one_epoch)
    learn(config)
    assert not list(Path().iterdir())
    run = home / "runs" / "mine"
    assert sorted(path.parent.name for path in run.glob("outputs/*/trainer_state.json")) == [
        "1-colors",
        "2-animals",
    ]
    assert [path.name for path in home.iterdir()] == ["runs"]
    assert not list(home.rglob(".tmp-*"))

    shutil.copytree(run / "outputs/1-colors/adapter", home / "colors-before")
    after = learn(config, "output_dir=~/next", "after=[~/colors-before]")
    assert after.tasks == ("colors-before", "colors", "animals")
    told = nlora("analyze", "~/colors-before", run / "outputs/2-animals/adapter", "--csv=~/pairs.csv")
    assert (told.status, (home / "pairs.csv").is_file()) == (0, True)

    opened = package.open_run("~/runs/mine")
    assert opened.report("~/page.html") == home / "page.html"
    assert opened.export("~/export", "adapter").folder == home / "export"
    assert not list(Path().iterdir())


def test_a_run_that_recorded_the_home_folder_as_a_sign_is_read(tmp_path: Path, home: Path) -> None:
    record = {"config": {"tasks": ["agnews"], "output_dir": "~/runs/old"}, "versions": {}, "base_folder": "."}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(record))
    assert load_config(tmp_path / "run.yaml").config.output_dir == str(home / "runs/old")


def test_a_sweep_finds_its_base_and_names_its_folders_there(tmp_path: Path, home: Path) -> None:
    (home / "mine.yaml").write_text(yaml.safe_dump(BASE))
    sweep = read_sweep(write_sweep(tmp_path, base="~/mine.yaml", output_dir="~/out", seeds=[1]))
    assert {str(folder): config.output_dir for folder, config in check_sweep(sweep).items()} == {
        str(home / f"out/{name}-seed1"): str(home / f"out/{name}-seed1") for name in ("plain", "penalty")
    }
