"""New texts answered by a run: the answers that the run itself gave, and what is said to wrong input."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

import nlora
from helpers import ANIMALS, learn, write_config
from nlora.api import prediction
from nlora.cli import app
from nlora.cli.predict import predict
from nlora.errors import InputErrors
from nlora.runs.checkpoint import StageModel, read_stage
from nlora.runs.events import Event, Progress

TinyModel = Callable[[str], Path]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_model: TinyModel) -> Path:
    """A finished run whose answers show its stage; the files that its tasks came from are gone."""
    folder = tmp_path_factory.mktemp("predict")
    learn(
        write_config(
            folder,
            tiny_model("llama"),
            method="pertask",
            train={"epochs": 3, "batch_size": 8, "learning_rate": 2e-2, "max_target_tokens": 8},
            evaluate={"batch_size": 4, "decode": "generate"},
        )
    )
    for file in folder.glob("*.jsonl"):
        file.unlink()
    return folder / "run"


def own_answers(run: Path, stage: str, task: str) -> tuple[list[str], list[str]]:
    """(texts, answers) of the run's own scoring."""
    lines = (run / "outputs" / stage / "predict_eval_predictions.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    found = [line for line in found if line["Dataset"] == task]
    return [line["Instance"]["sentence"] for line in found], [line["Prediction"] for line in found]


def answer(
    run: Path, capsys: pytest.CaptureFixture[str], task: str, stdin: str = "", **changes: object
) -> list[dict[str, str]]:
    with mock.patch("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin.encode()))):
        predict(str(run), task=task, **changes)  # type: ignore[arg-type]
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize("stage", ["1-colors", "2-animals"])
def test_the_answers_are_the_runs_own(
    run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, stage: str
) -> None:
    """Each task's prompt and, in this method, each task's adapter."""
    task = stage.split("-")[1]
    texts, expected = own_answers(run, stage, task)
    assert len(texts) == 9
    lines = answer(run, capsys, task, "\n".join(texts) + "\n\n", stage=int(stage[0]))
    assert [line["sentence"] for line in lines] == texts
    assert [line["prediction"] for line in lines] == expected
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps({"id": i, "input": text}) + "\n" for i, text in enumerate(texts)))
    from_file = answer(run, capsys, task, stage=int(stage[0]), file=str(file))
    assert from_file == [
        {"id": i, "input": text, "prediction": p}
        for i, (text, p) in enumerate(zip(texts, expected, strict=True))
    ]


def test_another_way_to_decode(run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "texts.txt"
    file.write_text("the red thing\n\nthe blue thing\n")
    lines = answer(run, capsys, "colors", file=str(file), settings=["decode=labels"])
    assert [line["sentence"] for line in lines] == ["the red thing", "the blue thing"]
    assert all(line["prediction"] in ("red", "green", "blue") for line in lines)


def test_no_text_needs_no_model(run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    other = tmp_path / "run"
    shutil.copytree(run, other)
    (other / "run.yaml").write_text(
        "\n".join(
            "  model: nowhere/at/all" if line.startswith("  model:") else line
            for line in (run / "run.yaml").read_text().splitlines()
        )
    )
    assert answer(other, capsys, "colors", "\n") == []


def test_an_answer_of_an_earlier_model_is_not_replaced(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = answer(run, capsys, "colors", "it is red")
    with pytest.raises(InputErrors, match="standard input:1: has a field prediction already"):
        answer(run, capsys, "colors", json.dumps(line))


def test_an_unknown_task_is_said_before_texts_are_read(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("sys.argv", ["nlora", "predict", str(run), "--task", "color"])
    with pytest.raises(SystemExit) as stop:
        app.main()
    assert stop.value.code == 2
    assert "--task: unknown task 'color'; did you mean 'colors'?" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".json", ".jsonl", ".parquet"])
def test_the_run_s_own_test_file_in_any_format(
    run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, suffix: str
) -> None:
    """The texts are asked, not the lines of the file; what else a row holds is printed with the answer."""
    texts, expected = own_answers(run, "1-colors", "colors")
    rows = [{"id": str(i), "sentence": text, "label": "red"} for i, text in enumerate(texts)]
    file = tmp_path / f"texts{suffix}"
    if suffix in (".csv", ".tsv"):
        mark = "," if suffix == ".csv" else "\t"
        file.write_text("".join(mark.join(r) + "\n" for r in [list(rows[0]), *(r.values() for r in rows)]))
    elif suffix == ".parquet":
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    else:
        file.write_text(json.dumps(rows) if suffix == ".json" else "\n".join(map(json.dumps, rows)))
    lines = answer(run, capsys, "colors", stage=1, file=str(file))
    assert lines == [{**row, "prediction": p} for row, p in zip(rows, expected, strict=True)]
    if suffix == ".jsonl":
        assert answer(run, capsys, "colors", file.read_text(), stage=1) == lines
    if suffix == ".csv":
        assert answer(run, capsys, "colors", file.read_text(), stage=1, kind="csv") == lines


def test_quotes_mean_in_new_texts_what_they_mean_in_the_task_s_own(
    run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (file := tmp_path / "texts.tsv").write_text('sentence\n"the ""red"" thing"\n')
    (line,) = answer(run, capsys, "colors", file=str(file))
    assert line["sentence"] == '"the ""red"" thing"'
    other = tmp_path / "run"
    shutil.copytree(run, other)
    text = (run / "run.yaml").read_text().replace("quoting: null", "quoting: true")
    (other / "run.yaml").write_text(text.replace("-test.jsonl", "-test.tsv"))
    (line,) = answer(other, capsys, "colors", file=str(file))
    assert line["sentence"] == 'the "red" thing'


def plain_probabilities(run: Path, task: str, prompts: list[str], labels: tuple[str, ...]) -> torch.Tensor:
    """(prompts, labels): each label after each prompt alone, through the merged model, token by token."""
    model, tokenizer = nlora.open_run(run).model(task=task)
    model.eval()
    scores = torch.zeros(len(prompts), len(labels))
    for i, prompt in enumerate(prompts):
        begin = tokenizer(prompt)["input_ids"]
        for j, label in enumerate(labels):
            ids = tokenizer(f"{prompt} {label}")["input_ids"]
            assert ids[: len(begin)] == begin
            with torch.no_grad():
                log_p = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
            scores[i, j] = sum(log_p[k - 1, ids[k]] for k in range(len(begin), len(ids)))
    return scores.softmax(1)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_the_probabilities_are_those_of_each_label_alone(
    run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, suffix: str
) -> None:
    texts, _ = own_answers(run, "2-animals", "animals")
    if suffix == ".csv":
        (tmp_path / "texts.csv").write_text("".join(f"{text}\n" for text in ["sentence", *texts]))
    else:
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.table({"sentence": texts}), tmp_path / "texts.parquet")
    lines: list[Any] = answer(
        run,
        capsys,
        "animals",
        file=str(tmp_path / f"texts{suffix}"),
        probabilities=True,
        settings=["decode=labels"],
    )
    assert [line["sentence"] for line in lines] == texts
    stage = run / "outputs" / "2-animals" / "predict_eval_predictions.jsonl"
    prompts = {
        line["Instance"]["sentence"]: line["Prompt"]
        for line in map(json.loads, stage.read_text().splitlines())
        if line["Dataset"] == "animals"
    }
    expected = plain_probabilities(run, "animals", [prompts[text] for text in texts], ANIMALS)
    found = torch.tensor([[line["probabilities"][label] for label in ANIMALS] for line in lines])
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)
    for line in lines:
        assert list(line) == ["sentence", "prediction", "probabilities"]
        assert sum(line["probabilities"].values()) == pytest.approx(1, abs=1e-5)
        assert line["prediction"] == max(line["probabilities"], key=line["probabilities"].get)


def test_python_gets_the_same_probabilities(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = ["the red thing", "the blue thing"]
    lines: list[Any] = answer(
        run, capsys, "colors", "\n".join(texts), probabilities=True, settings=["decode=labels"]
    )
    found = nlora.open_run(run).predict(texts, task="colors", probabilities=True, decode="labels")
    assert found == [line["probabilities"] for line in lines]


def test_a_part_of_the_texts_is_read_before_the_first_answer(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four at a time, whose answers are those of all nine together."""
    texts, expected = own_answers(run, "1-colors", "colors")
    read: list[str] = []

    class Rows(list[dict[str, str]]):
        def __iter__(self) -> Iterator[dict[str, str]]:
            for row in super().__iter__():
                read.append(row["text"])
                yield row

    monkeypatch.setattr(prediction, "BATCHES", 1)
    checkpoint = read_stage(run, 1, ["evaluate.decode=generate"])
    asked = prediction.asked_for(checkpoint, "colors")
    events: list[Event] = []
    rows = Rows({"text": text} for text in texts)
    answers = prediction.predict(StageModel(checkpoint), checkpoint, asked, rows, Progress(events.append))
    first = next(answers)
    assert read == texts[:4]
    assert [row["prediction"] for row in [first, *answers]] == expected
    assert [(event.done, event.total) for event in events] == [(0, 9), (4, 9), (8, 9), (9, 9)]


def test_a_mistake_far_below_is_found_before_the_first_answer(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prediction, "BATCHES", 1)
    with pytest.raises(InputErrors, match=r"standard input:8: .*'sentence'"):
        answer(run, capsys, "colors", '{"text": "fine"}\n' * 7 + "{}\n")
    assert capsys.readouterr().out == ""


def test_generated_answers_have_no_probabilities(
    run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(
        InputErrors, match=r"--probabilities: the run generates its answers; set decode=labels"
    ):
        answer(run, capsys, "colors", "x", probabilities=True)
    other = tmp_path / "run"
    shutil.copytree(run, other)
    text = (run / "run.yaml").read_text().replace("labels:", "labels: null #", 1)
    (other / "run.yaml").write_text(text.replace("    - red\n    - green\n    - blue\n", ""))
    with pytest.raises(InputErrors, match=r"^probabilities: task colors has free text as answers"):
        nlora.open_run(other).predict(["x"], task="colors", probabilities=True)


def test_keys_of_scoring_are_refused(run: Path, nlora: Callable[..., Any]) -> None:
    """They would change no answer; and the help says which keys do."""
    told = nlora("predict", run, "--task", "colors", "--set", "max_samples=1", "--set", "batch_size=2")
    assert (told.status, told.out) == (2, "")
    assert told.err == (
        "error: evaluate.max_samples=1: changes nothing here; the keys of evaluate that do are batch_size, decode\n"
    )
    assert "max_samples" not in nlora("predict", "--help").out


def with_keys(run: Path, folder: Path, keys: str) -> Path:
    """A copy of the run whose task colors has other keys."""
    shutil.copytree(run, folder)
    head, _, tail = (run / "run.yaml").read_text().partition("    template: null\n")
    (folder / "run.yaml").write_text(f"{head}    {keys}\n{tail}")
    return folder


def test_new_texts_have_the_columns_of_the_task(
    run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    texts = [text for text in own_answers(run, "1-colors", "colors")[0] if " " in text]
    with_template = with_keys(run, tmp_path / "template", "template: '{first} {rest}'")
    rows = [dict(zip(("first", "rest"), text.split(" ", 1), strict=True)) for text in texts]
    (file := tmp_path / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = answer(with_template, capsys, "colors", file=str(file), stage=1)
    plain = answer(run, capsys, "colors", "\n".join(texts), stage=1)
    assert [line.pop("prediction") for line in lines] == [line["prediction"] for line in plain]
    assert lines == rows
    with pytest.raises(InputErrors, match="a text instead of an object with the fields first and rest"):
        answer(with_template, capsys, "colors", texts[0])
    one_place = with_keys(run, tmp_path / "one", "template: '{body}'")
    assert answer(one_place, capsys, "colors", texts[0], stage=1)[0]["body"] == texts[0]
