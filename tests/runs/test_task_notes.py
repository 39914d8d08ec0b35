"""What is said of odd tasks before a run; nothing is said of plain ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from helpers import write_config
from nlora.cli.check import check
from nlora.cli.run import run
from nlora.data.task import Example, Task
from nlora.runs.task_notes import task_notes


def task(
    train: list[tuple[str, str]],
    test: list[tuple[str, str]],
    labels: tuple[str, ...] | None = ("a", "b", "c"),
) -> Task:
    splits = [tuple(Example(str(i), *row) for i, row in enumerate(split)) for split in (train, test)]
    return Task("t", "T", "", labels, *splits)


PLAIN = [("one", "a"), ("two", "b"), ("three", "c")]


@pytest.mark.parametrize(
    ("odd", "said"),
    [
        (task(PLAIN, [("four", "a")]), []),
        (task([("one", "x")], [("two", "y")], labels=None), []),
        (task(PLAIN[:1] * 4, [("four", "a")]), ["t: all 4 training examples have the label 'a'"]),
        (
            task(PLAIN[:2], [("four", "c"), ("five", "a"), ("six", "c"), ("seven", "-")]),
            ["t: 2 of 4 test examples have a label that no training example has: 'c'"],
        ),
        (task(PLAIN, [*PLAIN, ("four", "a")]), ["t: 3 of 4 test texts also occur in the training data"]),
        (
            task(
                [*PLAIN, ('"so ""called"""', "a"), ('"a quote"', "a"), ('"one" and "two"', "a")],
                [("four", "a")],
            ),
            [
                't: 1 of 7 texts look like quoted table cells, "...""..."; if that is how a TSV file was '
                "written, set quoting: true"
            ],
        ),
    ],
)
def test_oddities(odd: Task, said: list[str]) -> None:
    assert task_notes([odd]) == said


def test_check_and_run_print_them(
    tmp_path: Path,
    tiny_model: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = write_config(tmp_path, tiny_model("llama"))
    test = tmp_path / "colors-test.jsonl"
    test.write_text(test.read_text().replace("of test", "of train"))
    monkeypatch.setenv("COLUMNS", "200")
    check(str(file))
    note = "colors: 9 of 9 test texts also occur in the training data\n"
    assert f"\n{note}" in capsys.readouterr().out
    run(str(file))
    assert f"\n- {note}" in capsys.readouterr().out
