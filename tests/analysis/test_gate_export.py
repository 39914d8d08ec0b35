"""Ship or not: an export, which answers the test examples anew, against its run."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from helpers import ANIMALS, COLORS, learn, write_config, write_task
from nlora.analysis.gate import gate
from nlora.api.learn import learn as learn_run
from nlora.config.load import load_config
from nlora.errors import InputErrors, RunError
from nlora.runs.events import Progress
from nlora.runs.export.export import export
from nlora.runs.export.options import ExportOptions
from nlora.runs.export.record import RECORD_FILE
from nlora.runs.summary import read_summary

Made = Callable[[str], Path]
Call = Callable[..., tuple[int, str, str]]
EVERY_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LABELS = {"colors": COLORS, "animals": ANIMALS}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tiny_model: Made) -> Path:
    """A folder with a finished run of two tasks in `run`, and some of its exports. Tests change copies only."""
    folder = tmp_path_factory.mktemp("home")
    train = {"epochs": 20, "batch_size": 8, "learning_rate": 5e-3}
    lora = {"r": 8, "alpha": 16, "dropout": 0.0, "targets": EVERY_LINEAR}
    config = write_config(folder, tiny_model("llama"), method="inclora", lora=lora, train=train)
    for name, labels in LABELS.items():
        write_task(folder, name, labels, train=48)
    learn(config)
    scores = read_summary(folder / "run").R[1]
    assert any(score is not None and score > 50 for score in scores), "a model of chance has nothing to lose"
    for name, options in {
        "merged": ExportOptions("merged", examples=2),
        "adapter": ExportOptions("adapter", examples=2),
        "adapters": ExportOptions("adapters", examples=2),
        "sparse": ExportOptions("sparse", examples=2),
        "rank-1": ExportOptions("adapter", rank=1, examples=2),
        "ties": ExportOptions("merged", merge="ties", examples=2),
    }.items():
        export(folder / "run", folder / name, options)
    return folder


@pytest.fixture
def moved(home: Path, tmp_path: Path) -> Path:
    """A copy of the run and two exports, in another place."""
    for name in ("run", "adapter", "rank-1"):
        shutil.copytree(home / name, tmp_path / name)
    return tmp_path


def stored(home: Path, stage: str) -> dict[tuple[str, str], str]:
    """The answers on file, by task and example."""
    lines = (home / "run/outputs" / stage / "predict_eval_predictions.jsonl").read_text().splitlines()
    rows: list[dict[str, Any]] = [json.loads(line) for line in lines]
    return {(row["Dataset"], row["Instance"]["id"]): row["Prediction"] for row in rows}


@pytest.mark.parametrize("form", ["merged", "adapter", "adapters", "sparse"])
def test_an_export_in_every_form_scores_what_its_run_scores(home: Path, form: str) -> None:
    """All 9 test examples of each task, however many the export was checked on."""
    verdict = gate(home / form, max_drop=100)
    R = read_summary(home / "run").R
    assert [(v.changes.task, v.since, v.changes.changes.count) for v in verdict.tasks] == [
        ("colors", "stage 1", 9),
        ("animals", "stage 2", 9),
    ]
    assert [v.changes.before for v in verdict.tasks] == pytest.approx([R[0][0], R[1][1]])
    assert [v.changes.after for v in verdict.tasks] == pytest.approx([R[1][0], R[1][1]])
    assert verdict.model == f"small, stage 2 of 2, animals, exported --as {form}"


@pytest.mark.parametrize("form", ["rank-1", "ties"])
def test_what_a_lossy_export_lost_is_counted_by_its_own_answers(home: Path, form: str) -> None:
    """Against the run's last stage, and by answers made in another way: PEFT or transformers alone, one prompt each."""
    verdict = gate(home / form, against=home / "run", max_drop=100)
    then, now = stored(home, "2-animals"), answers_by_hand(home, home / form)
    for task in verdict.tasks:
        labels = LABELS[task.changes.task]
        truth = {(task.changes.task, str(i)): labels[i % 3] for i in range(9)}
        right = {key: (then[key] == label, now[key] == label) for key, label in truth.items()}
        assert task.changes.changes.worse == sum(a and not b for a, b in right.values())
        assert task.changes.changes.better == sum(b and not a for a, b in right.values())
        assert task.changes.after == pytest.approx(100 * sum(b for _, b in right.values()) / 9)


def answers_by_hand(home: Path, folder: Path) -> dict[tuple[str, str], str]:
    """The likeliest label of each prompt on file, by the sum of its tokens' log-probabilities."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    config = json.loads((folder / "adapter_config.json").read_text()) if "rank" in folder.name else None
    base = folder if config is None else Path(config["base_model_name_or_path"])
    model: Any = AutoModelForCausalLM.from_pretrained(base)
    if config is not None:
        model = PeftModel.from_pretrained(model, str(folder))
    model.eval()
    tokenizer = AutoTokenizer.from_pretrained(base)
    end = [tokenizer.eos_token_id]
    found = {}
    file = home / "run/outputs/2-animals/predict_eval_predictions.jsonl"
    for row in map(json.loads, file.read_text().splitlines()):
        scores = {}
        for label in LABELS[row["Dataset"]]:
            prompt = tokenizer(row["Prompt"]).input_ids
            answer = tokenizer(f" {label}", add_special_tokens=False).input_ids + end
            with torch.no_grad():
                logits = model(torch.tensor([prompt + answer])).logits[0].double().log_softmax(-1)
            places = range(len(prompt) - 1, len(prompt) + len(answer) - 1)
            scores[label] = sum(float(logits[at, token]) for at, token in zip(places, answer, strict=True))
        found[row["Dataset"], row["Instance"]["id"]] = max(scores, key=scores.__getitem__)
    return found


def test_the_status_is_1_if_an_export_lost_too_much(home: Path, nlora: Call) -> None:
    status, printed, _ = nlora("gate", home / "adapter", "--against", home / "run", "--max-drop", "0")
    assert (status, "passed" in printed) == (0, True)
    status, printed, errors = nlora("gate", home / "rank-1", "--against", home / "run", "--max-drop", "0")
    assert (status, errors) == (1, "")
    assert "exported --as adapter --rank 1" in printed
    assert "too much" in printed
    assert "not passed" in printed
    status, printed, _ = nlora("gate", home / "rank-1", "--max-drop", "100", "--json")
    assert (status, json.loads(printed)["passed"]) == (0, True)


def test_an_export_moves_with_its_run(moved: Path, home: Path) -> None:
    assert gate(moved / "rank-1").values() == gate(home / "rank-1").values()


def test_what_happened_to_the_files_since_counts(moved: Path) -> None:
    file = moved / "adapter" / "adapter_model.safetensors"
    save_file({name: tensor * 0 for name, tensor in load_file(file).items()}, file)
    verdict = gate(moved / "adapter", against=moved / "run", max_drop=0)
    assert any(v.changes.changes.worse for v in verdict.tasks)
    assert not verdict.passed


def test_a_stage_that_was_only_scored_again_is_the_one_that_was_exported(moved: Path) -> None:
    """Its stage.json has other times, its weights are the same. Without the digest of these it stays refused."""
    stage = moved / "run/outputs/2-animals"
    before, answers = (stage / "stage.json").read_bytes(), stage / "predict_eval_predictions.jsonl"
    then = gate(moved / "adapter", max_drop=100).tasks
    answers.write_bytes(answers.read_bytes()[:-30])
    learn_run(load_config(moved / "run/run.yaml"), Progress(), repair=True)
    assert (stage / "stage.json").read_bytes() != before
    assert gate(moved / "adapter", max_drop=100).tasks == then
    file = moved / "adapter" / RECORD_FILE
    file.write_text(json.dumps(json.loads(file.read_text()) | {"weights": None}))
    with pytest.raises(RunError, match=r"made from another training of .*run, stage 2 of 2, animals; export"):
        gate(moved / "adapter")


def without_record(moved: Path) -> None:
    (moved / "adapter" / RECORD_FILE).unlink()


def with_broken_record(moved: Path) -> None:
    (moved / "adapter" / RECORD_FILE).write_text("{")


def with_another_record(moved: Path) -> None:
    (moved / "adapter" / RECORD_FILE).write_text('{"schema": 1, "run": "../run"}')


def with_damaged_weights(moved: Path) -> None:
    (moved / "adapter" / "adapter_model.safetensors").write_bytes(b"x")


def without_weights(moved: Path) -> None:
    (moved / "adapter" / "adapter_model.safetensors").unlink()


def without_its_run(moved: Path) -> None:
    shutil.move(moved / "run", moved / "elsewhere")


def with_a_run_trained_again(moved: Path) -> None:
    file = moved / "run/outputs/2-animals/stage.json"
    file.write_text(file.read_text().replace('"train_seconds": ', '"train_seconds": 1'))
    sums = file.with_name("checksums.json")
    values = json.loads(sums.read_text())
    values["files"]["adapter/adapter_model.safetensors"]["sha256"] = "0" * 64
    sums.write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without_record, f"adapter: no {RECORD_FILE} in it, so the run that it was made from is unknown; write it"),
        (with_broken_record, f"adapter/{RECORD_FILE}: broken: "),
        (with_another_record, f"adapter/{RECORD_FILE}: broken: stage: Field required (and 2 more); export"),
        (with_damaged_weights, "adapter: cannot be loaded: "),
        (without_weights, "adapter: cannot be loaded: "),
        (without_its_run, "run, which is not there; move it back, or export another run"),
        (with_a_run_trained_again, "run, stage 2 of 2, animals; export the run again"),
    ],
)  # fmt: skip
def test_a_damaged_or_foreign_export_is_one_line(
    moved: Path, damage: Callable[[Path], None], message: str, nlora: Call
) -> None:
    damage(moved)
    status, printed, errors = nlora("gate", moved / "adapter")
    assert (status, printed) == (2, "")
    assert errors.startswith("error: ")
    assert message in errors
    assert len(errors.splitlines()) == 1


def test_the_stage_of_an_export_cannot_be_chosen(home: Path) -> None:
    with pytest.raises(InputErrors, match=r"--stage: .* is an export of stage 2; leave it out, or use"):
        gate(home / "adapter", stage=1)
    (colors,) = gate(home / "adapter", against_stage=1, max_drop=100).tasks
    assert (colors.changes.task, colors.since) == ("colors", "stage 1")


def test_runs_of_other_tasks_are_refused_before_anything_is_loaded(
    home: Path, tmp_path: Path, tiny_model: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No task in common; other test examples; a test file that has changed since."""
    shapes = write_task(tmp_path, "shapes", ("round", "flat"))
    learn(write_config(tmp_path, tiny_model("llama"), method="inclora", tasks=[shapes]), "train.epochs=1")
    monkeypatch.setattr("nlora.runs.export.answered.load", None)
    with pytest.raises(InputErrors, match="has no scored task in common with"):
        gate(home / "adapter", against=tmp_path / "run")
    with pytest.raises(InputErrors, match="has no scored task in common with"):
        gate(home / "run", against=tmp_path / "run")
    config = write_config(tmp_path, tiny_model("llama"), method="inclora", output_dir=str(tmp_path / "few"))
    write_task(tmp_path, "colors", COLORS, test=3)
    learn(config, "train.epochs=1")
    with pytest.raises(InputErrors, match="task colors: the two are not comparable: 9 other test examples"):
        gate(home / "adapter", against=tmp_path / "few")
    copy = tmp_path / "copy"
    shutil.copytree(home, copy)
    file = copy / "run" / "run.yaml"
    file.write_text(file.read_text().replace(str(home / "colors-test"), str(tmp_path / "colors-test")))
    message = re.escape("task colors: its test examples are not the ones that stage 2 was scored on")
    with pytest.raises(InputErrors, match=message):
        gate(copy / "adapter")


def test_methods_with_a_model_for_each_task_or_for_all(tmp_path: Path, tiny_model: Made) -> None:
    config = write_config(tmp_path, tiny_model("llama"), method="pertask", train={"epochs": 1})
    learn(config)
    export(tmp_path / "run", tmp_path / "one", ExportOptions("merged", task="animals"))
    export(tmp_path / "run", tmp_path / "both", ExportOptions("adapters"))
    assert [v.changes.task for v in gate(tmp_path / "one").tasks] == ["animals"]
    assert [v.changes.task for v in gate(tmp_path / "both").tasks] == ["colors", "animals"]
    learn(config, "method=mtl", f"output_dir={tmp_path / 'mtl'}")
    export(tmp_path / "mtl", tmp_path / "all", ExportOptions("adapter"))
    tasks = gate(tmp_path / "all").tasks
    assert [(v.changes.task, v.since, v.changes.drop) for v in tasks] == [
        ("colors", "stage 2", 0.0),
        ("animals", "stage 2", 0.0),
    ]


def test_a_folder_that_is_neither_run_nor_export(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no run\.yaml in it; give the output_dir of a run"):
        gate(tmp_path)
