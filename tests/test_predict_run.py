"""New texts answered by a run: the answers that the run itself gave, and what is said to wrong input."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from helpers import learn, write_config
from nlora import cli
from nlora.errors import InputErrors
from nlora.predict_run import predict_command, read_texts

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
    options = {"stage": None, "file": None, "settings": [], **changes}
    predict_command(
        str(run), task=task, stdin=io.StringIO(stdin), progress_console=Console(quiet=True), **options
    )  # type: ignore[arg-type]
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize("stage", ["1-colours", "2-animals"])
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
    lines = answer(run, capsys, "colours", file=str(file), settings=["decode=labels"])
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
    assert answer(other, capsys, "colours", "\n") == []


def test_an_unknown_task_is_said_before_texts_are_read(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("sys.argv", ["nlora", "predict", str(run), "--task", "colour"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    assert "--task: unknown task 'colour'; did you mean 'colours'?" in capsys.readouterr().err


def test_lines_without_a_text_are_named(tmp_path: Path) -> None:
    file = tmp_path / "texts.jsonl"
    file.write_text('{"sentence": "a"}\n{"label": "b"}\n\n{"text"\n"bare"\n[1]\n')
    with pytest.raises(InputErrors) as told:
        read_texts(file, [])
    assert [str(p).removeprefix(str(tmp_path)) for p in told.value.problems] == [
        "/texts.jsonl:2: expected an object with a text as one of sentence, input, text",
        "/texts.jsonl:4: not JSON: Expecting ':' delimiter (column 8)",
        "/texts.jsonl:6: expected an object with a text as one of sentence, input, text",
    ]
    with pytest.raises(InputErrors, match="--file: no such file: gone"):
        read_texts(Path("gone"), [])
    file.write_text('"bare"\n')
    assert read_texts(file, []) == [{"sentence": "bare"}]
