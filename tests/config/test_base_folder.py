"""Relative paths of a run: a copied project reads its own files, a run that was moved alone still finds its data."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import nlora
from helpers import ANIMALS, COLORS, learn, write_task
from nlora.api.evaluation import Evaluation
from nlora.config.base_folder import located, read, recorded
from nlora.config.load import load_config
from nlora.config.schema import Config
from nlora.data.files import read_examples
from nlora.runs.run_yaml import read_run_file

TinyModel = Callable[[str], Path]


def project(folder: Path, model: Path, config_at: str = "mine.yaml") -> Path:
    """A folder with data and a configuration whose paths are relative; the configuration."""
    tasks = [
        write_task(folder / "data", name, words) for name, words in (("colors", COLORS), ("animals", ANIMALS))
    ]
    for task in tasks:
        for split in ("train", "test"):
            task[split] = str(Path(task[split]).relative_to(folder))
    values = {"model": str(model), "tasks": tasks, "method": "inclora", "output_dir": str(folder / "runs/x")}
    path = folder / config_at
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump({**values, "lora": {"r": 4}, "train": {"batch_size": 8}}))
    return path


def asked(run: Path) -> Evaluation:
    return nlora.open_run(run).evaluate("colors")


def cut(folder: Path, lines: int) -> None:
    file = folder / "data/colors-test.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:lines]))


@pytest.mark.parametrize("cwd", ["original", "elsewhere"])
@pytest.mark.parametrize("config_at", ["mine.yaml", "configs/mine.yaml"])
def test_a_copied_project_reads_its_own_files(
    tmp_path: Path, tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch, cwd: str, config_at: str
) -> None:
    config = project(tmp_path / "original", tiny_model("llama"), config_at)
    monkeypatch.chdir(tmp_path / "original")
    learn(config)
    (tmp_path / "elsewhere").mkdir()
    shutil.copytree(tmp_path / "original", tmp_path / "copy")
    cut(tmp_path / "copy", 4)
    monkeypatch.chdir(tmp_path / cwd)
    assert asked(tmp_path / "copy/runs/x").scores[0].examples == 4
    assert asked(tmp_path / "original/runs/x").scores[0].examples == 9


def test_a_run_that_is_moved_alone_finds_its_data_where_they_were(
    tmp_path: Path, tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = project(tmp_path / "a/original", tiny_model("llama"))
    learn(config)
    (tmp_path / "b").mkdir()
    shutil.move(tmp_path / "a/original/runs/x", tmp_path / "b/x")
    monkeypatch.chdir(tmp_path / "b")
    assert asked(tmp_path / "b/x").scores[0].examples == 9


def test_run_yaml_has_the_folder_as_it_is_seen_from_there(tmp_path: Path, tiny_model: TinyModel) -> None:
    config = project(tmp_path / "original", tiny_model("llama"))
    learn(config)
    record = read_run_file(tmp_path / "original/runs/x")
    assert record["base_folder"] == "../.."
    again = load_config(str(tmp_path / "original/runs/x/run.yaml"), [f"output_dir={tmp_path / 'original/y'}"])
    assert again.base_folder == tmp_path / "original"
    learn(tmp_path / "original/runs/x/run.yaml", f"output_dir={tmp_path / 'original/y'}")
    assert read_run_file(tmp_path / "original/y")["base_folder"] == ".."


def test_the_run_yaml_of_a_copied_run_goes_on_where_it_lies(
    tmp_path: Path, tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    learn(project(tmp_path / "original", tiny_model("llama")))
    shutil.copytree(tmp_path / "original", tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy/runs/x/outputs/2-animals")
    shutil.rmtree(tmp_path / "original/runs")
    monkeypatch.chdir(tmp_path / "copy/runs")
    loaded = load_config("x/run.yaml")
    assert (loaded.config.output_dir, loaded.base_folder) == ("x", tmp_path / "copy")
    assert learn("x/run.yaml").status == "complete"
    assert (tmp_path / "copy/runs/x/outputs/2-animals").is_dir()
    assert not (tmp_path / "original/runs").exists()
    assert load_config("x/run.yaml", ["output_dir=y"]).config.output_dir == "y"
    shutil.copy("x/run.yaml", "mine.yaml")  # no run's folder: only its configuration
    assert load_config("mine.yaml").config.output_dir == str(tmp_path / "original/runs/x")


def config_of(**changes: Any) -> Config:
    task = {"name": "t", "train": "data/train.jsonl", "test": "data/test.jsonl"}
    return Config.model_validate({"tasks": [task], **changes})


def test_what_an_older_version_wrote_and_folders_without_anything_in_common(tmp_path: Path) -> None:
    assert read({"base_folder": str(tmp_path / "old"), "config": {}}, tmp_path / "run") == tmp_path / "old"
    assert read({"config": {}}, tmp_path) == tmp_path
    assert recorded(tmp_path / "run", config_of(), Path("/nowhere/at/all")) == {
        "base_folder": "/nowhere/at/all"
    }


@pytest.mark.parametrize("adapter", ["someone/an-adapter", "theirs"])
def test_a_path_that_no_folder_has_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, adapter: str
) -> None:
    """An adapter of the hub, or one whose folder was deleted after the run had taken it over."""
    here, configs = tmp_path / "project", tmp_path / "project/configs"
    (here / "data").mkdir(parents=True)
    configs.mkdir()
    for split in ("train", "test"):
        (here / f"data/{split}.jsonl").touch()
    tasks = [{"name": "old", "adapter": adapter}, *config_of().model_dump()["tasks"]]
    config = Config.model_validate({"tasks": tasks})
    monkeypatch.chdir(here)
    record = recorded(here / "run", config, configs)
    assert record["base_folder"] == ".."
    values = {**record, "config": config.model_dump()}
    assert read(values, here / "run") == here
    here.rename(tmp_path / "moved")
    assert read(values, tmp_path / "moved/run") == tmp_path / "moved"
    (tmp_path / "alone").mkdir()
    (tmp_path / "moved").rename(here)  # the run alone is moved: its data are where they were
    assert read(values, tmp_path / "alone/run") == here


def test_a_link_to_another_disk_is_followed(tmp_path: Path) -> None:
    (tmp_path / "scratch/deep/runs").mkdir(parents=True)
    (tmp_path / "original").mkdir()
    (tmp_path / "original/runs").symlink_to(tmp_path / "scratch/deep/runs")
    run = tmp_path / "original/runs/x"
    run.mkdir()
    record = recorded(run, config_of(), tmp_path / "original")
    assert record["base_folder"] == "../../../../original"
    assert read(record, run) == tmp_path / "original"


def test_only_relative_paths_that_are_there_are_made_absolute(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/train.jsonl").touch()
    (tmp_path / "builtin").touch()
    found = located(config_of(data="builtin"), tmp_path)
    (task,) = found.tasks
    assert (found.data, task.train, task.test) == (
        "builtin",
        str(tmp_path / "data/train.jsonl"),
        "data/test.jsonl",
    )
    assert json.loads(found.model_dump_json())["tasks"][0]["test"] == "data/test.jsonl"


def test_a_pattern_of_paths_is_a_path_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tmp_path / "[x]"
    (base / "data").mkdir(parents=True)
    (base / "data/a.csv").write_text("text,label\nfine,a\n")
    task = {"name": "t", "train": "data/*.csv", "test": "data/*.tsv"}
    config = Config(tasks=[task], output_dir="run")  # type: ignore[list-item]
    (found,) = located(config, base).tasks
    assert (found.train, found.test) == (f"{tmp_path}/[[]x]/data/*.csv", "data/*.tsv")
    (example,), problems = read_examples(str(found.train), labels=None)
    assert (example.sentence, problems) == ("fine", [])
    monkeypatch.chdir(base)  # the current folder has the data, not the configuration's
    config = Config(tasks=[{**task, "test": "data/a.csv"}], output_dir="run")  # type: ignore[list-item]
    assert recorded(base / "runs/x", config, tmp_path)["base_folder"] == "../.."


def test_the_text_whose_perplexity_is_measured_is_a_path_too(tmp_path: Path) -> None:
    config = Config(
        tasks=["agnews"],  # type: ignore[list-item]
        data="builtin",
        evaluate={"general": {"text": "text.txt", "harness": ["mine"], "harness_path": "tasks"}},  # type: ignore[arg-type]
        output_dir="run",
    )
    for name in ("here", "base"):
        (tmp_path / name).mkdir()
    (tmp_path / "base/text.txt").touch()
    (tmp_path / "base/tasks").mkdir()
    record = {**recorded(tmp_path / "run", config, tmp_path / "base"), "config": config.model_dump()}
    assert read(record, tmp_path / "run") == tmp_path / "base"
    (tmp_path / "moved").mkdir()  # without the text, so that the folder of then is right
    assert read(record, tmp_path / "moved" / "run") == tmp_path / "base"


def test_a_run_that_goes_on_from_another_project_folder_has_that_one(
    tmp_path: Path, tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = f"output_dir={tmp_path / 'run'}"
    config = project(tmp_path / "original", tiny_model("llama"))
    values = yaml.safe_load(config.read_text())
    config.write_text(yaml.safe_dump({**values, "tasks": values["tasks"][:1]}))
    learn(config, run)
    config.write_text(yaml.safe_dump(values))
    shutil.move(tmp_path / "original", tmp_path / "moved")
    monkeypatch.chdir("/")
    learn(tmp_path / "moved" / config.name, run)
    record = read_run_file(tmp_path / "run")
    assert (record["base_folder"], record["base_folder_then"]) == ("../moved", str(tmp_path / "moved"))
    assert record["versions"]
    assert asked(tmp_path / "run").scores[0].examples == 9
