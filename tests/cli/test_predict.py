"""New texts answered by a run: the answers that the run itself gave, and what is said to wrong input."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest

from helpers import learn, write_config
from nlora.cli import app
from nlora.cli.predict import predict
from nlora.errors import InputErrors

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
