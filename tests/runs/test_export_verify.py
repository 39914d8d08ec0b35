"""An export that does not answer as the run did is no export: it is refused, and nothing is left of it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import without_checksums, write_task
from nlora.errors import InputErrors, RunError
from nlora.models.lora_factors import LoraFactors
from nlora.runs.export import forms, verify
from nlora.runs.export.export import export
from nlora.runs.export.options import ExportOptions
from nlora.runs.export.record import RECORD_FILE, read_record
from nlora.runs.export.work import Work

Runs = Callable[..., Path]

TinyModel = Callable[[str], Path]


@pytest.fixture
def run(finished_run: Runs, tmp_path: Path) -> Path:
    """A copy of a run, which a test may change."""
    copy = tmp_path / "run"
    shutil.copytree(finished_run(), copy)
    return copy


def nothing_left(folder: Path) -> bool:
    return {path.name for path in folder.iterdir()} <= {"run", "data"}


def without_one_module(factors: Any, *rest: Any) -> None:
    name = next(iter(factors))
    written = {**factors, name: LoraFactors(factors[name].A, torch.zeros_like(factors[name].B), 1.0)}
    original(written, *rest)


original = forms.write_adapter


def test_what_was_written_wrong_is_found_and_removed(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forms, "write_adapter", without_one_module)
    with pytest.raises(
        RunError, match="loaded again, does not answer as the model it was made from"
    ) as error:
        export(run, tmp_path / "sub" / "out", ExportOptions("adapter"))
    assert "colors, example 0: '" in str(error.value)
    assert nothing_left(tmp_path)


def test_a_failed_export_leaves_others_beside_it(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in a folder that it has made itself."""

    def other_export_too(*rest: Any) -> None:
        (tmp_path / "sub/exports/other").mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr(forms, "write_adapter", other_export_too)
    with pytest.raises(KeyboardInterrupt):
        export(run, tmp_path / "sub/exports/out", ExportOptions("adapter"))
    assert [path.name for path in (tmp_path / "sub/exports").iterdir()] == ["other"]


def test_a_lossy_export_is_checked_too(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forms, "write_adapter", without_one_module)
    with pytest.raises(RunError, match="loaded again"):
        export(run, tmp_path / "out", ExportOptions("adapter", rank=4))
    assert nothing_left(tmp_path)


def change_answers(run: Path, count: int) -> None:
    without_checksums(run)
    path = run / "outputs" / "2-animals" / "predict_eval_predictions.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows[:count]:
        row["Prediction"] = "something else"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("form", ["merged", "adapter", "adapters"])
def test_other_answers_than_the_runs_are_an_error_with_the_examples(
    run: Path, tmp_path: Path, form: str
) -> None:
    change_answers(run, 7)
    with pytest.raises(RunError, match="does not answer as stage 2 of 2, animals of the run did") as error:
        export(run, tmp_path / "out", ExportOptions(form))
    lines = str(error.value).splitlines()
    assert "7 answers differ" in lines[0]
    assert lines[1].startswith("  colors, example 0: 'something else', exported '")
    assert lines[1].endswith("the red thing number 0 of test")
    assert lines[6] == "  and 2 more"
    assert nothing_left(tmp_path)


@pytest.mark.parametrize(
    "options",
    [
        ExportOptions("adapter", rank=2),
        ExportOptions("sparse"),
        ExportOptions("merged", dtype="bfloat16"),
        ExportOptions("merged", merge="magmax"),
    ],
    ids=["rank", "sparse", "16 bits", "magmax"],
)
def test_a_lossy_choice_reports_the_difference(run: Path, tmp_path: Path, options: ExportOptions) -> None:
    change_answers(run, 7)
    found = export(run, tmp_path / "out", options)
    assert found.different["colors"] >= 7
    assert found.run["colors"] == 0


def test_answers_that_are_equally_likely_are_no_difference(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = (run / "outputs" / "2-animals" / "predict_eval_predictions.jsonl").read_text()
    assert json.loads(rows.splitlines()[0])["Prediction"] != "red"
    change_answers(run, 1)
    monkeypatch.setattr(verify, "_TIE", 1e9)  # as if all answers were
    found = export(run, tmp_path / "out", ExportOptions("merged"))
    assert found.different == {"colors": 1, "animals": 0}


def test_ties_of_labels_are_measured_by_their_scores(finished_run: Runs, tmp_path: Path) -> None:
    """A stored label that is less likely by far is a difference, however the model came to it."""
    run = tmp_path / "run"
    shutil.copytree(finished_run("llama", "nlora", evaluate={"batch_size": 4}), run)
    without_checksums(run)
    path = run / "outputs" / "2-animals" / "predict_eval_predictions.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[0]["Prediction"] = next(c for c in ("red", "green", "blue") if c != rows[0]["Prediction"])
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(RunError, match="1 answers differ"):
        export(run, tmp_path / "out", ExportOptions("merged"))


def test_only_the_first_examples_are_answered(run: Path, tmp_path: Path) -> None:
    found = export(run, tmp_path / "out", ExportOptions("merged", examples=3))
    assert found.examples == {"colors": 3, "animals": 3}


def test_other_test_data_cannot_check_anything(
    finished_run: Runs, tiny_model: TinyModel, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run(), run)
    data = tmp_path / "data"
    task = write_task(data, "colors", ("red", "green", "blue"))
    (data / "colors-test.jsonl").write_text('{"sentence": "another text", "label": "red"}\n')
    config = (run / "run.yaml").read_text()
    old = next(line for line in config.splitlines() if line.strip().startswith("test:") and "colors" in line)
    (run / "run.yaml").write_text(config.replace(old.partition("test:")[2].strip(), task["test"]))
    with pytest.raises(InputErrors, match="task colors: its test examples are not the ones that stage 2 was"):
        export(run, tmp_path / "out", ExportOptions("merged"))
    (data / "colors-test.jsonl").unlink()
    with pytest.raises(InputErrors, match="colors"):
        export(run, tmp_path / "out", ExportOptions("merged"))
    assert nothing_left(tmp_path)


def test_a_damaged_adapter_is_named(run: Path, tmp_path: Path) -> None:
    (run / "outputs" / "1-colors" / "adapter" / "adapter_model.safetensors").write_bytes(b"x")
    with pytest.raises(RunError, match=r"1-colors/adapter/adapter_model\.safetensors: has 1 bytes"):
        export(run, tmp_path / "out", ExportOptions("merged"))
    assert nothing_left(tmp_path)


def test_an_empty_folder_is_filled_and_a_leftover_removed(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    left, others = (tmp_path / f".tmp-{pid}-out" for pid in (2**22 + 1, os.getppid()))
    for folder in (left, others):  # of a killed export, and of one that another process is making
        folder.mkdir()
        (folder / "old").write_text("not of this export")
    export(run, out, ExportOptions("adapter"))
    assert {file.name for file in out.iterdir()} == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        RECORD_FILE,
    }
    assert not left.exists()
    assert [file.name for file in others.iterdir()] == ["old"]


def test_an_empty_folder_that_a_link_points_to_is_filled(run: Path, tmp_path: Path) -> None:
    (disk := tmp_path / "disk" / "empty").mkdir(parents=True)
    (out := tmp_path / "out").symlink_to(disk)
    found = export(run, out, ExportOptions("adapter"))
    assert (found.folder, out.readlink()) == (out, disk)
    assert {path.name for path in disk.parent.iterdir()} == {"empty"}
    assert read_record(out).run == "../../run"


def test_a_folder_that_cannot_be_replaced_is_refused_at_once(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Work, "run", lambda work: pytest.fail("the model is loaded"))
    (empty := tmp_path / "empty").mkdir()
    (link := tmp_path / "link").symlink_to(empty)
    monkeypatch.chdir(empty)
    for out in (Path(), empty, link):
        with pytest.raises(InputErrors, match=f"^OUT: {out} is the current folder; name a new folder in it$"):
            export(run, out, ExportOptions("adapter"))
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as mounted:
        mounted.setattr(Path, "is_mount", lambda path: path == empty)
        for out in (empty, link):
            with pytest.raises(InputErrors, match=f"^OUT: {out} is a mount point; name a new folder in it$"):
                export(run, out, ExportOptions("adapter"))
    (inside := tmp_path / "inside").symlink_to(run / "outputs")
    with pytest.raises(InputErrors, match="holds something already"):
        export(run, inside, ExportOptions("adapter"))
    with pytest.raises(InputErrors, match=f"is inside the run {run}"):
        export(run, inside / "new", ExportOptions("adapter"))
    with pytest.raises(InputErrors, match=r"^OUT: has a name of 300 bytes in it"):
        export(run, "x" * 300, ExportOptions("adapter"))
    assert (list(empty.iterdir()), link.is_symlink()) == ([], True)


def test_the_run_is_left_as_it_was(run: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    export(run, tmp_path / "out", ExportOptions("merged"))
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


def test_names_that_differ_by_case_only_keep_their_folders_apart(tmp_path: Path) -> None:
    from nlora.runs.export.updates import StageUpdate, folder_names

    def named(*tasks: str) -> list[str]:
        return folder_names([StageUpdate(i, task, tmp_path, {}) for i, task in enumerate(tasks, start=1)])

    assert named("tickets", "what?") == ["tickets", "what%3F"]
    assert named("News", "news") == ["1-News", "2-news"]
