"""A task's metric: which ones there are, and how a function of the user's own is found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nlora.config.base_folder import located, recorded
from nlora.config.load import load_config
from nlora.data.load import load_tasks
from nlora.data.scorers import versions_of_scorers
from nlora.data.task import Task
from nlora.errors import InputErrors

SCORER = "def first_letter(prediction, answers):\n    return prediction[:1] in {a[0] for a in answers}\n"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with mine.py and the data of a task; the current folder is another one."""
    folder = tmp_path / "project"
    folder.mkdir()
    for name in ("train", "test"):
        rows = [{"text": f"{name} {i}", "label": "ab"[i % 2]} for i in range(4)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "mine.py").write_text(SCORER)
    monkeypatch.chdir(tmp_path)
    return folder


def load(project: Path, metric: str, **task: Any) -> Task:
    entry = {"name": "notes", "train": "train.jsonl", "test": "test.jsonl", "metric": metric, **task}
    (project / "run.yaml").write_text(json.dumps({"tasks": [entry]}))
    loaded = load_config(project / "run.yaml")
    (found,) = load_tasks(loaded.config, base_folder=loaded.base_folder)
    return found


def mistake(project: Path, metric: str, **task: Any) -> str:
    with pytest.raises(InputErrors) as told:
        load(project, metric, **task)
    (problem,) = told.value.problems
    assert problem.key[:2] == ("tasks", 0)
    assert "\n" not in problem.what
    return problem.what


@pytest.mark.parametrize("metric", ["./mine.py:first_letter", "mine.py:first_letter"])
def test_a_file_is_looked_for_as_data_files_are(project: Path, metric: str) -> None:
    task = load(project, metric)
    assert task.metric == "mine.py:first_letter"
    assert task.scorer is not None
    assert (task.scorer("bee", ("a", "b")), task.scorer("c", ("a", "b"))) == (True, False)


def test_a_function_of_a_module(project: Path) -> None:
    task = load(project, "difflib:get_close_matches")
    assert task.metric == "difflib:get_close_matches"
    import difflib

    assert task.scorer is difflib.get_close_matches


def test_an_edited_file_is_loaded_again(project: Path) -> None:
    load(project, "mine.py:first_letter")
    (project / "mine.py").write_text(SCORER.replace("prediction[:1] in", "None is"))
    task = load(project, "mine.py:first_letter")
    assert task.scorer is not None
    assert task.scorer("a", ("a",)) is False


def test_the_metrics_of_labels(project: Path) -> None:
    for metric in ("accuracy", "macro_f1"):
        assert load(project, metric, labels=["a", "b"]).metric == metric
        assert mistake(project, metric) == (
            f"{metric} counts labels, but task 'notes' has free text as answers; set its labels, or take exact_match "
            "or rougeL"
        )
    assert load(project, "exact_match").metric == "exact_match"


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        ("acuracy", "unknown metric 'acuracy'; did you mean 'accuracy'?"),
        ("rouge_l", "unknown metric 'rouge_l'; did you mean 'rougeL'?"),
        (
            "bleu",
            "unknown metric 'bleu'; the metrics are accuracy, macro_f1, exact_match, rougeL, edit_similarity, sari, "
            "or a function of your own: score.py:FUNCTION",
        ),
        ("mine.py", "or a function of your own: mine.py:FUNCTION"),
        ("mine.py:", "'mine.py:' is neither file.py:FUNCTION nor module:FUNCTION"),
        (":score", "':score' is neither"),
        ("not a module:score", "is neither"),
        ("none.py:score", "no such file: none.py (looked in "),
        ("no_such_module:score", "no_such_module: ModuleNotFoundError: No module named 'no_such_module'; a file is "
         "named with its suffix: no_such_module.py:score"),
        ("json.none:score", "json.none: ModuleNotFoundError"),
        ("mine.py:first_leter", "mine.py: has no function 'first_leter'; did you mean 'first_letter'?"),
        ("json:score", "json: has no function 'score'"),
        ("string:digits", "string: 'digits' is not a function"),
    ],
)  # fmt: skip
def test_a_metric_that_does_not_exist(project: Path, metric: str, said: str) -> None:
    assert said in mistake(project, metric)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("def broken(:\n", "mine.py:1: is not Python: "),
        ("\nimport no_such_thing\n", "mine.py:2: ModuleNotFoundError: "),
    ],
)
def test_a_file_that_cannot_be_loaded_is_named_with_its_line(project: Path, source: str, said: str) -> None:
    (project / "mine.py").write_text(source)
    assert said in mistake(project, "mine.py:broken")


def test_its_path_moves_with_the_project(project: Path, tmp_path: Path) -> None:
    load(project, "./mine.py:first_letter")
    loaded = load_config(project / "run.yaml")
    assert recorded(project / "runs/a", loaded.config, loaded.base_folder)["base_folder"] == "../.."
    (task,) = located(loaded.config, loaded.base_folder).tasks
    assert task.metric == f"{project / 'mine.py'}:first_letter"
    (version,) = versions_of_scorers(loaded.config, loaded.base_folder).items()
    assert version[0] == "mine.py"
    assert version[1].startswith("sha256:")
    (project / "mine.py").write_text(SCORER + "# a comment\n")
    assert versions_of_scorers(loaded.config, loaded.base_folder)["mine.py"] != version[1]
