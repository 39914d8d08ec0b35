"""Columns of any name, templates of several columns, and names for label values, in files and hub data sets."""

from __future__ import annotations

import json
import sys
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nlora.config.schema import Config
from nlora.data.digest import digest
from nlora.data.fields import FieldError, Fields
from nlora.data.files import read_examples
from nlora.data.load import load_tasks
from nlora.data.readers import FORMATS
from nlora.errors import InputErrors

ROWS: list[dict[str, Any]] = [
    {"premise": "It rains, {hard}", "hypothesis": "It is wet", "gold": 1, "label": "ignored"},
    {"premise": "It shines", "hypothesis": "It is dark", "gold": 0, "label": "ignored"},
]
NLI = Fields(
    template="P: {premise}\nH: {hypothesis} {{?}}", label=("gold",), label_names={"0": "no", "1": "yes"}
)
TEXTS = [("P: It rains, {hard}\nH: It is wet {?}", "yes"), ("P: It shines\nH: It is dark {?}", "no")]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix in {".csv", ".tsv"}:
        mark = "," if path.suffix == ".csv" else "\t"
        cells = [list(rows[0]), *(list(map(str, row.values())) for row in rows)]
        quoted = [[f'"{c}"' if mark in c else c for c in line] for line in cells]
        path.write_text("".join(mark.join(line) + "\n" for line in quoted))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_gives_the_same_examples(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"d{suffix}", ROWS)
    examples, problems = read_examples(str(path), labels=("yes", "no"), fields=NLI)
    assert problems == []
    assert [(e.sentence, e.label) for e in examples] == TEXTS


def test_decimals_of_a_database_are_numbers(tmp_path: Path) -> None:
    """Spark and Snowflake write whole numbers as decimals."""
    rows = [
        {"sentence": "a", "label": Decimal("1"), "price": Decimal("100.00")},
        {"sentence": "b", "label": Decimal("0"), "price": Decimal("2.50")},
    ]
    path = write(tmp_path / "d.parquet", rows)
    fields = Fields(template="{sentence} {price}", label_names={"0": "no", "1": "yes"})
    examples, problems = read_examples(str(path), labels=None, fields=fields)
    assert problems == []
    assert [(e.sentence, e.label) for e in examples] == [("a 100", "yes"), ("b 2.5", "no")]


def test_a_named_column_wins_over_the_usual_one(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", [{"sentence": "no", "question": "this", "label": "a", "answer": "b"}])
    (example,), _ = read_examples(
        str(path), labels=None, fields=Fields(text=("question",), label=("answer",))
    )
    assert (example.sentence, example.label) == ("this", "b")


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
@pytest.mark.parametrize(
    ("fields", "missing"),
    [
        (Fields(text=("q",)), "no field 'q'; the fields are"),
        (Fields(label=("q",)), "no field 'q'; the fields are"),
        (Fields(template="{text}: {q}"), "no column 'q'; the columns are"),
    ],
)
def test_a_column_that_does_not_exist_is_reported_with_those_that_do(
    tmp_path: Path, suffix: str, fields: Fields, missing: str
) -> None:
    path = write(tmp_path / f"d{suffix}", [{"text": "x", "label": "a", "id": "1"}] * 20)
    _, (problem,) = read_examples(str(path), labels=None, fields=fields)
    assert str(problem).endswith(f"{missing}: text, label, id")


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"a": "x", "b": ""}, "x|"),
        ({"a": None, "b": "y"}, "|y"),
        ({"a": " ", "b": "y"}, "|y"),
        ({"a": "x", "b": "\t"}, "x|"),
        ({"a": 3, "b": 2.5}, "3|2.5"),
        ({"a": True, "b": "y"}, "true|y"),
    ],
)
def test_a_column_in_a_template_may_be_empty_or_a_number(row: dict[str, Any], text: str) -> None:
    assert Fields(template="{a}|{b}").text_of(row) == text


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"a": "", "b": None}, "a and b are empty"),
        ({"a": ["x"], "b": "y"}, "a is a list instead of text"),
        ({"a": "x \ud83d", "b": "y"}, "which is half of a character"),
    ],
)
def test_a_template_without_a_text_is_refused(row: dict[str, Any], said: str) -> None:
    with pytest.raises(FieldError, match=said):
        Fields(template="{a}|{b}").text_of(row)


def test_a_value_without_a_name_is_reported_with_its_row(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", [{"text": "x", "label": 1}, {"text": "x", "label": 2}])
    _, (problem,) = read_examples(str(path), labels=None, fields=Fields(label_names={"0": "no", "1": "yes"}))
    assert str(problem) == f"{path}:2: label '2' has no name; label_names has names for 0, 1"


class Table:
    """The part of datasets.Dataset that is used, with the column `topic` of class numbers."""

    column_names = ("headline", "topic")
    features = {"headline": SimpleNamespace(), "topic": SimpleNamespace(names=["World", "Sports"])}  # noqa: RUF012

    def __iter__(self) -> Any:
        return iter([{"headline": "a", "topic": 1}, {"headline": "b", "topic": 0}])

    def select_columns(self, names: list[str]) -> Table:
        assert set(names) <= set(self.column_names)
        return self


@pytest.mark.parametrize(
    ("fields", "texts", "labels"),
    [
        (Fields(text=("headline",), label=("topic",)), ["a", "b"], ["Sports", "World"]),
        (
            Fields(("headline",), ("topic",), None, {"0": "world news", "1": "sport"}),
            ["a", "b"],
            ["sport", "world news"],
        ),
        (Fields(("headline",), ("topic",), None, {"World": "w", "Sports": "s"}), ["a", "b"], ["s", "w"]),
        (Fields(label=("headline",), template="{topic}!"), ["Sports!", "World!"], ["a", "b"]),
    ],
)
def test_class_numbers_of_the_hub(
    monkeypatch: pytest.MonkeyPatch, fields: Fields, texts: list[str], labels: list[str]
) -> None:
    fake = SimpleNamespace(load_dataset=lambda name, config, split: Table())
    monkeypatch.setitem(sys.modules, "datasets", fake)
    examples, problems = read_examples("hub:news", labels=None, fields=fields)
    assert problems == []
    assert ([e.sentence for e in examples], [e.label for e in examples]) == (texts, labels)


def config(tmp_path: Path, **task: Any) -> Config:
    files = {"train": str(tmp_path / "train.jsonl"), "test": str(tmp_path / "test.jsonl")}
    return Config.model_validate({"tasks": [{"name": "nli", **files, **task}]})


def test_a_task_has_the_examples_that_ready_made_files_would_give(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", ROWS)
    write(tmp_path / "test.jsonl", ROWS[:1])
    keys = {"template": NLI.template, "columns": {"label": "gold"}}
    (task,) = load_tasks(config(tmp_path, **keys, label_names=["no", "yes"]))
    assert task.labels == ("no", "yes")
    write(tmp_path / "train.jsonl", [{"sentence": text, "label": label} for text, label in TEXTS])
    write(tmp_path / "test.jsonl", [{"sentence": text, "label": label} for text, label in TEXTS[:1]])
    (ready,) = load_tasks(config(tmp_path, labels=["no", "yes"]))
    assert task == ready
    assert digest(task.train) == digest(ready.train)
    (swapped,) = load_tasks(config(tmp_path, labels=["yes", "no"], label_names={"no": "yes", "yes": "no"}))
    assert digest(swapped.train) != digest(ready.train)


def test_a_column_that_is_missing_is_reported_for_each_file(tmp_path: Path) -> None:
    for name in ("train", "test"):
        write(tmp_path / f"{name}.jsonl", [{"text": "x", "label": "a"}])
    with pytest.raises(InputErrors) as caught:
        load_tasks(config(tmp_path, columns={"text": "body"}))
    assert [str(p).replace(f"{tmp_path}/", "") for p in caught.value.problems] == [
        f"{name}.jsonl:1: no field 'body'; the fields are: text, label" for name in ("train", "test")
    ]
