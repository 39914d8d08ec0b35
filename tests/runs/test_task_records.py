"""What a run keeps of its tasks beside their scores, and that nothing of it may change under the run."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from helpers import ANIMALS, COLORS, learn, without_checksums, write_config, write_task
from nlora.config.schema import Config
from nlora.data.load import load_tasks
from nlora.data.task import Task
from nlora.errors import InputErrors
from nlora.evaluation.evaluator import Answers, Evaluator
from nlora.runs.summary import StageRecord, read_summary
from nlora.runs.task_records import task_record

TinyModel = Callable[[str], Path]
FREE = "tell what is in the text"


def sha256(rows: Sequence[tuple[str, str]]) -> str:
    """The digest of rows of (text, label), written out: each part behind its length in eight bytes."""
    parts = [text.encode() for row in rows for text in row]
    return hashlib.sha256(b"".join(len(part).to_bytes(8, "big") + part for part in parts)).hexdigest()


def rows_of(file: Path) -> list[tuple[str, str]]:
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    return [(row["sentence"], row["label"]) for row in rows]


def unfinished(folder: Path, model: Path, **changes: Any) -> Path:
    """The configuration of a run of two tasks of which only the first stage is there."""
    config = write_config(folder, model, train={"epochs": 1, "batch_size": 8}, **changes)
    learn(config)
    shutil.rmtree(folder / "run/outputs/2-animals")
    return config


def edit(file: Path, change: Callable[[list[str]], list[str]]) -> None:
    file.write_text("".join(change(file.read_text().splitlines(keepends=True))))


def test_a_run_keeps_the_digests_of_what_it_trained_and_scored(tmp_path: Path, tiny_model: TinyModel) -> None:
    learn(write_config(tmp_path, tiny_model("llama"), train={"epochs": 1, "batch_size": 8}))
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert list(summary["digests"]) == ["colors", "animals"]
    for task, found in summary["digests"].items():
        for split, count in (("train", 16), ("test", 9)):
            expected = {"sha256": sha256(rows_of(tmp_path / f"{task}-{split}.jsonl")), "count": count}
            assert found[split] == {**expected, "drawn_from": None}
    prompt = (
        "Task:colors\nDataset:colors\nWhich word is in the text? Choose one from the option.\n"
        "Option: red, green, blue \n"
    )
    assert summary["digests"]["colors"]["prompt_sha256"] == sha256([(prompt, "\nAnswer:")])
    assert summary["decode"] == {"colors": "labels", "animals": "labels"}
    assert summary["metrics"] == {"colors": "exact_match", "animals": "exact_match"}
    records = [
        StageRecord.model_validate_json((tmp_path / f"run/outputs/{stage}/stage.json").read_text())
        for stage in ("1-colors", "2-animals")
    ]
    assert [list(record.tasks) for record in records] == [["colors"], ["colors", "animals"]]
    assert records[0].tasks["colors"] == records[1].tasks["colors"]


CHANGES: list[tuple[str, Callable[[list[str]], list[str]], str]] = [
    (
        "colors-test",
        lambda lines: lines[:3],
        "task colors: its test examples are not the ones stage 1 was scored on (9 then, 3 now); "
        "restore the file, or choose another output_dir",
    ),
    (
        "colors-train",
        lambda lines: [line.replace('"label": "red"', '"label": "blue"') for line in lines],
        "task colors: its train examples are not the ones stage 1 was trained on (16 then, 16 now); "
        "restore the file, or choose another output_dir",
    ),
    (
        "colors-test",
        lambda lines: lines[::-1],
        "task colors: its test examples are not the ones stage 1 was scored on (9 then, 9 now); "
        "restore the file, or choose another output_dir",
    ),
]


@pytest.mark.parametrize(("file", "change", "message"), CHANGES, ids=["cut", "flipped", "reversed"])
def test_what_a_stage_was_scored_or_trained_on_may_not_change(
    tmp_path: Path,
    tiny_model: TinyModel,
    monkeypatch: pytest.MonkeyPatch,
    file: str,
    change: Callable[[list[str]], list[str]],
    message: str,
) -> None:
    config = unfinished(tmp_path, tiny_model("llama"))
    edit(tmp_path / f"{file}.jsonl", change)
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    monkeypatch.setattr(
        "nlora.models.backbone.load_backbone", lambda *args, **kwargs: pytest.fail("the model is loaded")
    )
    with pytest.raises(InputErrors) as told:
        learn(config)
    assert list(map(str, told.value.problems)) == [message]
    after = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    del before[tmp_path / "run/summary.json"], after[tmp_path / "run/summary.json"]  # tells what is there
    assert after == before


def test_all_changes_are_said_at_once_and_what_is_still_to_come_may_change(
    tmp_path: Path, tiny_model: TinyModel
) -> None:
    config = unfinished(tmp_path, tiny_model("llama"))
    edit(tmp_path / "animals-train.jsonl", lambda lines: lines[:8])
    edit(tmp_path / "animals-test.jsonl", lambda lines: lines[:6])
    assert learn(config).status == "complete"
    assert read_summary(tmp_path / "run").digests["animals"].test.count == 6
    shutil.rmtree(tmp_path / "run/outputs/2-animals")
    for split in ("train", "test"):
        edit(tmp_path / f"colors-{split}.jsonl", lambda lines: lines[1:])
    with pytest.raises(InputErrors) as told:
        learn(config)
    assert [str(p).split(" examples")[0] for p in told.value.problems] == [
        "task colors: its test",
        "task colors: its train",
    ]


def test_scores_before_any_training_and_of_unseen_tasks_hold_their_examples_too(
    tmp_path: Path, tiny_model: TinyModel
) -> None:
    evaluate = {"batch_size": 4, "zero_shot": True, "unseen": True}
    config = unfinished(tmp_path, tiny_model("llama"), evaluate=evaluate)
    edit(tmp_path / "animals-test.jsonl", lambda lines: lines[:5])
    edit(tmp_path / "animals-train.jsonl", lambda lines: lines[:8])  # nothing was trained on these yet
    with pytest.raises(InputErrors) as told:
        learn(config)
    assert list(map(str, told.value.problems)) == [
        "task animals: its test examples are not the ones the untrained model was scored on (9 then, 5 now); "
        "restore the file, or choose another output_dir"
    ]


def test_what_is_trained_and_not_scored_yet_holds_its_train_examples(
    tmp_path: Path, tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_config(tmp_path, tiny_model("llama"), train={"epochs": 1, "batch_size": 8})

    def no_memory(*args: Any, **kwargs: Any) -> Answers:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(Evaluator, "answer", no_memory)
        with pytest.raises(MemoryError):
            learn(config)
    edit(tmp_path / "colors-test.jsonl", lambda lines: lines[:3])  # nothing was scored on these yet
    kept = (tmp_path / "colors-train.jsonl").read_text()
    edit(tmp_path / "colors-train.jsonl", lambda lines: lines[:12])
    with pytest.raises(InputErrors) as told:
        learn(config)
    assert list(map(str, told.value.problems)) == [
        "task colors: its train examples are not the ones stage 1 was trained on (16 then, 12 now); "
        "restore the file, or choose another output_dir"
    ]
    (tmp_path / "colors-train.jsonl").write_text(kept)
    assert learn(config).digests["colors"].test.count == 3


def test_a_prompt_that_comes_from_the_data_folder_may_not_change(
    tmp_path: Path, tiny_model: TinyModel
) -> None:
    folder = tmp_path / "data"
    for name in ("colors", "animals"):
        place = folder / "TC" / name
        place.mkdir(parents=True)
        for split, count in (("train", 12), ("test", 4)):
            rows = [{"sentence": f"{i} is red", "label": "red"} for i in range(count)]
            (place / f"{split}.json").write_text(json.dumps(rows))
        (place / "labels.json").write_text('["red", "blue"]')
    config = write_config(
        tmp_path,
        tiny_model("llama"),
        data=str(folder),
        tasks=[{"name": name, "type": "TC", "instruction": "Which?"} for name in ("colors", "animals")],
        train={"epochs": 1, "batch_size": 8},
    )
    learn(config)
    shutil.rmtree(tmp_path / "run/outputs/2-animals")
    (folder / "TC/colors/labels.json").write_text('["red", "blue", "green"]')
    with pytest.raises(InputErrors, match="task colors: its prompt is not the one stage 1 used"):
        learn(config)


def test_a_finished_run_needs_no_data(tmp_path: Path, tiny_model: TinyModel) -> None:
    config = write_config(tmp_path, tiny_model("llama"), train={"epochs": 1, "batch_size": 8})
    whole = learn(config)
    for file in tmp_path.glob("*.jsonl"):
        file.unlink()
    assert learn(config) == whole


def test_a_run_of_an_older_version_goes_on_with_its_metric(tmp_path: Path, tiny_model: TinyModel) -> None:
    tasks = [free_text(tmp_path, "colors"), write_task(tmp_path, "animals", ANIMALS)]
    config = unfinished(tmp_path, tiny_model("llama"), tasks=tasks)
    without_checksums(tmp_path / "run")
    record = tmp_path / "run/outputs/1-colors/stage.json"
    values = json.loads(record.read_text())
    del values["tasks"]
    record.write_text(json.dumps(values))
    edit(tmp_path / "colors-test.jsonl", lambda lines: lines[:3])  # nobody can tell
    summary = learn(config)
    assert summary.metrics == {"colors": "exact_match", "animals": "exact_match"}


def free_text(folder: Path, name: str) -> dict[str, Any]:
    """The same task without its label set."""
    entry = write_task(folder, name, COLORS)
    return {**{key: value for key, value in entry.items() if key != "labels"}, "instruction": FREE}


@pytest.mark.parametrize("protocol", ["repaired", "released"])
def test_free_text_is_scored_by_rouge_but_under_the_released_protocol(
    tmp_path: Path, tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch, protocol: str
) -> None:
    def answer(self: Evaluator, task: Task, *args: Any, **kwargs: Any) -> Answers:
        """Two of nine answers match; the others have one word more than their label."""
        texts = [e.label if i < 2 else f"{e.label} perhaps" for i, e in enumerate(task.test)]
        return Answers(tuple(texts), self.decode_of(task), 1.0, 1)

    monkeypatch.setattr(Evaluator, "answer", answer)
    tasks = [free_text(tmp_path, "replies"), write_task(tmp_path, "animals", ANIMALS)]
    train = {"epochs": 1, "batch_size": 8}
    summary = learn(write_config(tmp_path, tiny_model("llama"), tasks=tasks, train=train, protocol=protocol))
    by_rouge = 100 * (2 + 7 * 2 / 3) / 9  # precision 1/2 and recall 1 make an F-measure of 2/3
    by_match = 100 * 2 / 9
    assert summary.R[0][0] == pytest.approx(by_rouge if protocol == "repaired" else by_match)
    assert summary.R[1][1] == pytest.approx(by_match)
    metric = "rougeL" if protocol == "repaired" else "exact_match"
    assert json.loads((tmp_path / "run/summary.json").read_text())["metrics"] == {
        "replies": metric,
        "animals": "exact_match",
    }
    assert summary.decode["replies"] == "generate"
    results = json.loads((tmp_path / "run/outputs/1-replies/predict_results.json").read_text())
    assert results["predict_exact_match_for_replies"] == pytest.approx(by_match, abs=1e-3)


def test_a_sample_knows_what_it_was_drawn_from(tmp_path: Path) -> None:
    entry = write_task(tmp_path, "colors", COLORS, train=20, test=9)
    whole = {split: sha256(rows_of(tmp_path / f"colors-{split}.jsonl")) for split in ("train", "test")}

    def facts(seed: int, **evaluate: Any) -> Any:
        values = {"tasks": [entry], "seed": seed, "evaluate": evaluate, "train": {"max_samples": 7}}
        config = Config.model_validate(values)
        return task_record(load_tasks(config)[0], config)

    one, two = facts(1, max_samples=5), facts(2, max_samples=5)
    assert one.test.sha256 != two.test.sha256
    assert one.test.source == two.test.source == (whole["test"], 5)
    assert one.train.source == two.train.source == (whole["train"], 7)
    held = facts(1, split="validation")
    assert held.test.source == (whole["train"], 4)
    assert facts(1).test.source == (whole["test"], 9)
    assert facts(1).test.drawn_from is None


@pytest.mark.parametrize("command", ["run", "check"])
def test_the_whole_command_line_says_it_and_stops_with_2(
    tmp_path: Path,
    tiny_model: TinyModel,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
) -> None:
    from nlora.cli import app

    config = unfinished(tmp_path, tiny_model("llama"))
    edit(tmp_path / "colors-test.jsonl", lambda lines: lines[:3])
    monkeypatch.setattr("sys.argv", ["nlora", command, str(config)])
    with pytest.raises(SystemExit) as stop:
        app.main()
    assert stop.value.code == 2
    told = "".join(capsys.readouterr().err.split())
    assert "testexamplesarenottheonesstage1wasscoredon(9then,3now)" in told
