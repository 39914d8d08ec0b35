"""The command line as a person meets it: what it prints, and what it says to wrong input."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from helpers import ANIMALS, write_config, write_task

Nlora = Callable[..., Any]
TinyModel = Callable[[str], Path]


def change(path: Path, **changes: object) -> Path:
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **changes}))
    return path


@pytest.mark.parametrize("method", ["inclora", "seqft", "osf"])
def test_every_path_that_run_prints_is_there(
    tmp_path: Path, tiny_model: TinyModel, nlora: Nlora, method: str
) -> None:
    told = nlora("run", write_config(tmp_path, tiny_model("llama"), method=method, train={"batch_size": 8}))
    printed = [line.split()[-1] for line in told.out.splitlines() if f" {tmp_path / 'run'}/" in line]
    assert len(printed) == 5
    for path in printed:
        assert list(tmp_path.glob(str(Path(path).relative_to(tmp_path)))), path


def test_run_prints_the_matrix_and_the_paths(tmp_path: Path, tiny_model: TinyModel, nlora: Nlora) -> None:
    config = write_config(tmp_path, tiny_model("llama"))
    told = nlora("run", config)
    assert told.status == 0
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert f"average accuracy {summary['average_accuracy']:.1f}" in told.out
    assert str(tmp_path / "run/summary.json") in told.out
    again = nlora("run", config)
    assert again.status == 0
    assert "complete, nothing to do" in again.out
    assert f"average accuracy {summary['average_accuracy']:.1f}" in again.out


def test_a_changed_configuration_is_refused_with_the_difference(
    tmp_path: Path, tiny_model: TinyModel, nlora: Nlora
) -> None:
    config = write_config(tmp_path, tiny_model("llama"))
    assert nlora("run", config).status == 0
    told = nlora("run", config, "train.learning_rate=1e-4")
    assert told.status == 2
    assert "train.learning_rate" in told.err
    assert "0.005" in told.err
    assert "0.0001" in told.err


def test_check_prints_the_plan_and_writes_nothing(
    tmp_path: Path, tiny_model: TinyModel, nlora: Nlora
) -> None:
    told = nlora("check", write_config(tmp_path, tiny_model("llama")))
    assert told.status == 0
    # 16 examples in batches of 8, 2 epochs: 4 steps per task.
    assert re.search(r"1\s+colors\s+3\s+16\s+9\s+4\s", told.out)
    # q is 32 -> 32 and v 32 -> 16, r = 4, in two layers.
    assert f"{2 * 4 * (64 + 48):,} trained parameters" in told.out
    assert re.search(r"memory: about \d.* at the peak, \d.* of this machine", told.out)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("gain", "dtype", "hint"),
    [
        (2.1, "float32", "bfloat16 are 2.1 times as fast here as in float32: try dtype=bfloat16"),
        (1.2, "float32", None),
        (0.4, "float32", None),
        (2.1, "bfloat16", None),
        (0.9, "bfloat16", None),
        (
            0.4,
            "bfloat16",
            "float32 are 2.5 times as fast here as in bfloat16: try dtype=float32, which takes twice the memory",
        ),
    ],
)
def test_check_names_the_faster_number_format(
    tmp_path: Path,
    tiny_model: TinyModel,
    nlora: Nlora,
    monkeypatch: pytest.MonkeyPatch,
    gain: float,
    dtype: str,
    hint: str | None,
) -> None:
    monkeypatch.setattr("nlora.runs.time_estimate.bfloat16_gain", lambda: gain)
    told = nlora("check", write_config(tmp_path, tiny_model("llama")), f"dtype={dtype}")
    assert told.status == 0
    hints = [line for line in told.out.splitlines() if line.startswith("matrix products in ")]
    assert hints == ([] if hint is None else [f"matrix products in {hint}"])


def test_ls_names_recipes_methods_and_data(nlora: Nlora) -> None:
    told = nlora("ls")
    assert told.status == 0
    for word in ("demo", "nlora", "inclora", "seqlora", "update_l1", "reuters", "JSONL"):
        assert word in told.out
    assert "inclora" not in nlora("ls", "data").out
    assert "train.learning_rate" in nlora("ls", "options").out
    assert nlora("ls", "models").status == 2


def test_cp_copies_a_recipe_once(tmp_path: Path, nlora: Nlora) -> None:
    target = tmp_path / "mine.yaml"
    assert nlora("cp", "demo", target).status == 0
    text = target.read_text()
    assert text.startswith("#")
    assert yaml.safe_load(text)["model"] == "smollm2"
    again = nlora("cp", "demo", target)
    assert again.status == 2
    assert "exists already" in again.err
    assert target.read_text() == text
    assert "did you mean 'demo'" in nlora("cp", "dmeo", tmp_path / "b.yaml").err
    nowhere = nlora("cp", "demo", f"{tmp_path / 'new'}/")
    assert (nowhere.status, nowhere.err.endswith("new/: there is no such folder; make it first\n")) == (
        2,
        True,
    )
    assert not (tmp_path / "new").exists()


def test_all_mistakes_of_the_configuration_come_first(
    tmp_path: Path, tiny_model: TinyModel, nlora: Nlora
) -> None:
    """One wrong thing in every section; the model and the file that do not exist are reported after that."""
    config = write_config(tmp_path, tiny_model("llama"))
    first = yaml.safe_load(config.read_text())["tasks"][0]
    change(
        config,
        train={"epohcs": 3, "batch_size": "ten"},
        method={"name": "nlora", "wieght": 1.0},
        lora={"rank": 4},
        tasks=[{**first, "test": str(tmp_path / "gone.jsonl")}, {"name": "sizes", "trian": "x.jsonl"}],
        stages={first["name"]: {"train": {"learning_rate": -1}, "method": {"penalty": "l3"}}},
        model="./nowhere",
    )
    for command in ("check", "run"):
        told = nlora(command, config, "evaluate.split=tset")
        assert told.status == 2
        expected = [
            r"config\.yaml:\d+: train\.epohcs: unknown key; did you mean 'epochs'",
            r"config\.yaml:\d+: train\.batch_size: must be a whole number >= 1, not 'ten'",
            r"config\.yaml:\d+: lora\.rank: unknown key",
            r"config\.yaml:\d+: tasks\.1\.trian: unknown key; did you mean 'train'",
            rf"config\.yaml:\d+: stages\.{first['name']}\.train\.learning_rate: must be a number > 0",
            rf"config\.yaml:\d+: stages\.{first['name']}\.method\.penalty: must be update_l1, factor_l1 or update_l2",
            r"evaluate\.split=tset: must be test or validation",
            r"config\.yaml:\d+: method\.wieght: unknown key; did you mean 'weight'",
        ]
        for pattern in expected:
            assert re.search(pattern, told.err), f"{pattern} is not in\n{told.err}"
        assert told.err.startswith(f"{len(expected)} errors:\n"), told.err
        assert not (tmp_path / "run").exists()


def test_then_all_mistakes_of_data_model_method_and_folder(
    tmp_path: Path, tiny_model: TinyModel, nlora: Nlora
) -> None:
    config = write_config(tmp_path, tiny_model("llama"))
    values = yaml.safe_load(config.read_text())
    values["tasks"][1]["test"] = str(tmp_path / "gone.jsonl")
    (tmp_path / "file").write_text("")
    values |= {"method": {"name": "disjoint", "share": 0.9}, "output_dir": str(tmp_path / "file")}
    change(config, **values)
    (tmp_path / "colors-train.jsonl").write_text(
        '{"sentence": "a", "label": "red"}\n{"sentence": "b", "label": "rde"}\n'
    )
    told = nlora("run", config)
    assert told.status == 2
    assert "Traceback" not in told.err
    for pattern in (
        r"config\.yaml:\d+: tasks\.1\.test: no such file: .*gone\.jsonl",
        r"colors-train\.jsonl:2.*'rde'.*did you mean 'red'",
        r"config\.yaml:\d+: method\.share: share 0\.9 gives room for 1 task",
        r"config\.yaml:\d+: output_dir: .*file is a file; choose another folder",
    ):
        assert re.search(pattern, told.err), f"{pattern} is not in\n{told.err}"


def test_a_prompt_without_room_is_reported_with_other_mistakes(
    tmp_path: Path, tiny_model: TinyModel, nlora: Nlora
) -> None:
    (tmp_path / "file").write_text("")
    told = nlora(
        "run",
        write_config(tmp_path, tiny_model("llama")),
        f"output_dir={tmp_path / 'file'}",
        "train.max_source_tokens=8",
    )
    assert told.status == 2
    assert "is a file; choose another folder" in told.err
    assert "its instruction and options alone take" in told.err


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": "no/such-model"}, "model no/such-model: "),
        ({"model": "./nowhere"}, "there is no such folder"),
        ({"method": {"name": "nlora", "penalty": "factor_l1"}}, "update_l1"),
        ({"method": "nlroa"}, "did you mean 'nlora'"),
        ({"train": {"epohcs": 1}}, "did you mean 'epochs'"),
        ({"train": {"epochs": "many"}}, "train.epochs"),
        ({"lora": {"targets": ["no_such_module"]}}, "no_such_module"),
        ({"stages": {"colours": {"train": {}}}}, "did you mean 'colors'"),
        ({"stages": {"colors": {"train": {"max_source_tokens": 64}}}}, "holds for the whole run"),
        ({"train": {"report_to": ["wandb"]}}, "wandb is not installed; pip install wandb"),
    ],
)
def test_wrong_input_is_one_clear_line(
    tmp_path: Path, tiny_model: TinyModel, nlora: Nlora, changes: dict[str, object], said: str
) -> None:
    told = nlora("run", change(write_config(tmp_path, tiny_model("llama")), **changes))
    assert told.status == 2
    mistake, *more = told.err.strip().splitlines()
    assert said in mistake
    assert more in ([], ["data and model are checked once the configuration is right"])
    assert not (tmp_path / "run").exists()


def test_two_tasks_of_one_name_are_refused(tmp_path: Path, tiny_model: TinyModel, nlora: Nlora) -> None:
    tasks = [write_task(tmp_path, "Animals", ANIMALS), write_task(tmp_path, "animals", ANIMALS)]
    told = nlora("check", change(write_config(tmp_path, tiny_model("llama")), tasks=tasks))
    assert told.status == 2
    assert "animals" in told.err


def test_an_output_folder_that_is_a_file_is_refused(
    tmp_path: Path, tiny_model: TinyModel, nlora: Nlora
) -> None:
    config = write_config(tmp_path, tiny_model("llama"))
    (tmp_path / "run").write_text("mine")
    for override in ([], [f"output_dir={tmp_path / 'run' / 'inside'}"]):
        told = nlora("run", config, *override)
        assert told.status == 2
        assert f"{tmp_path / 'run'} is a file; choose another folder" in told.err
        assert re.match(r"error: (\S*config\.yaml:\d+: output_dir|output_dir=\S+): ", told.err)
        assert (tmp_path / "run").read_text() == "mine"


def test_debug_shows_the_traceback_and_works_anywhere(tmp_path: Path, nlora: Nlora) -> None:
    for arguments in (["run", tmp_path / "no.yaml", "--debug"], ["--debug", "run", tmp_path / "no.yaml"]):
        told = nlora(*arguments)
        assert told.status == 2
        assert "Traceback" in told.err


def test_usage_mistakes_exit_with_two(nlora: Nlora) -> None:
    assert nlora("learn").status == 2
    assert nlora("run").status == 2
    assert nlora("--version").out.startswith("nlora ")


def test_processes_and_a_launcher_exclude_each_other(
    tmp_path: Path, tiny_model: TinyModel, nlora: Nlora, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_config(tmp_path, tiny_model("llama"))
    launched = {
        "RANK": "0",
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "1",
    }
    for name, value in launched.items():
        monkeypatch.setenv(name, value)
    told = nlora("run", config, "--processes", 2)
    assert told.status == 2
    assert told.err == (
        "error: --processes: a launcher has started several processes already; leave out --processes, or the launcher\n"
    )
    for command in (
        ("sweep", "sweep.yaml"),
        ("export", tmp_path / "run", "--as", "merged", tmp_path / "out"),
    ):
        told = nlora(*command)
        assert told.status == 2
        assert told.err.startswith(
            f"error: nlora {command[0]} takes one process, but a launcher has started 2; leave"
        )


@pytest.mark.parametrize(
    ("environment", "note"),
    [
        ({"WORLD_SIZE": "2"}, "- WORLD_SIZE is 2, but no launcher has started this process"),
        (
            {"ACCELERATE_USE_CPU": "True", "MASTER_ADDR": "127.0.0.1"},
            "- accelerate launch started a single process",
        ),
    ],
)
def test_a_run_that_is_alone_against_expectation_says_so(
    tmp_path: Path,
    tiny_model: TinyModel,
    nlora: Nlora,
    monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str],
    note: str,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    told = nlora("run", write_config(tmp_path, tiny_model("llama"), train={"epochs": 1}))
    assert told.status == 0
    assert note in told.out


def test_a_split_model_is_refused_before_anything_is_loaded(
    tmp_path: Path, tiny_model: TinyModel, nlora: Nlora, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    told = nlora("run", write_config(tmp_path, tiny_model("llama")))
    assert told.status == 2
    assert told.err.startswith("error: ACCELERATE_USE_FSDP: accelerate is configured for FSDP")
    assert not (tmp_path / "run").exists()
