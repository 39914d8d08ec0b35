"""Rows with several accepted answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nlora.data.digest import digest
from nlora.data.fields import Fields
from nlora.data.files import read_examples
from nlora.data.task import Example

ROWS = [
    {"text": "Who wrote Emma?", "label": ["Jane Austen", "Austen", "Jane Austen"]},
    {"text": "When?", "label": ["1815"]},
]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
def test_the_first_is_the_label_and_the_rest_are_accepted_too(tmp_path: Path, suffix: str) -> None:
    examples, problems = read_examples(str(write(tmp_path / f"d{suffix}", ROWS)), labels=None)
    assert problems == []
    assert [(e.label, e.others) for e in examples] == [("Jane Austen", ("Austen",)), ("1815", ())]
    assert [e.answers for e in examples] == [("Jane Austen", "Austen"), ("1815",)]


def test_values_in_a_list_get_their_names(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", [{"text": "x", "label": [1, True]}, {"text": "y", "label": 1}])
    fields = Fields(label_names={"1": "yes", "true": "sure"})
    examples, problems = read_examples(str(path), labels=("yes", "sure"), fields=fields)
    assert problems == []
    assert [e.answers for e in examples] == [("yes", "sure"), ("yes",)]


@pytest.mark.parametrize(
    ("label", "said"),
    [
        ([], "label is an empty list; it needs at least one answer"),
        (["a", None], "label[1] is empty (null) instead of text"),
        (["a", ["b"]], "label[1] is a list instead of text"),
        ([{"text": "a"}], "label[0] is an object instead of text"),
        (["a", " "], "label[1] is empty"),
        (["a", "c"], "label 'c' is not one of the task's labels: a, b"),
        (["c", "a"], "label 'c' is not one of the task's labels: a, b"),
    ],
)
def test_a_list_that_is_no_list_of_answers(tmp_path: Path, label: Any, said: str) -> None:
    path = write(tmp_path / "d.jsonl", [{"text": "x", "label": "a"}, {"text": "x", "label": label}])
    examples, (problem,) = read_examples(str(path), labels=("a", "b"))
    assert str(problem) == f"{path}:2: {said}"
    assert len(examples) == 1


def test_the_digest_depends_on_all_answers() -> None:
    def of(*answers: tuple[str, ...]) -> str:
        return digest([Example(str(i), "text", a[0], a[1:]) for i, a in enumerate(answers)])

    different = [of(("a",), ("b",)), of(("a", "b"), ("b",)), of(("a",), ("b", "b2")), of(("a", "b2"), ("b",))]
    assert len({*different, of(("a", "b", "c"), ("d",)), of(("a", "b"), ("d", "c"))}) == 6
