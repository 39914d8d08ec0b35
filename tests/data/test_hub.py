"""Data sets on the hub, with a fake of the optional package; no network is used."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from nlora.data import hub
from nlora.data.files import read_examples
from nlora.data.task import Example
from nlora.errors import MissingExtraError


class FakeTable:
    """The part of datasets.Dataset that is used."""

    def __init__(self, rows: list[dict[str, Any]], names: list[str] | None) -> None:
        self.rows = rows
        self.column_names = list(rows[0])
        self.features = {field: SimpleNamespace() for field in self.column_names}
        if names:
            self.features["label"] = SimpleNamespace(names=names)

    def __iter__(self) -> Any:
        return iter(self.rows)

    def select_columns(self, names: list[str]) -> FakeTable:
        self.column_names, self.features = names, {name: self.features[name] for name in names}
        self.rows = [{name: row[name] for name in names} for row in self.rows]
        return self


def fake_of(load_dataset: Any) -> SimpleNamespace:
    """The part of `datasets` that is used."""
    return SimpleNamespace(
        load_dataset=load_dataset, exceptions=SimpleNamespace(DatasetsError=ZeroDivisionError)
    )


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("hub:imdb", ("imdb", None, "test")),
        ("hub:imdb/train", ("imdb", None, "train")),
        ("hub:fancyzhx/ag_news", ("fancyzhx/ag_news", None, "test")),
        ("hub:fancyzhx/ag_news/validation", ("fancyzhx/ag_news", None, "validation")),
        ("hub:nyu-mll/glue:sst2", ("nyu-mll/glue", "sst2", "test")),
        ("hub:nyu-mll/glue:mnli/validation_matched", ("nyu-mll/glue", "mnli", "validation_matched")),
    ],
)
def test_parts_of_a_source(source: str, expected: tuple[str, str | None, str]) -> None:
    assert hub.parse(source, "test") == expected


def test_class_numbers_become_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def load_dataset(name: str, config: str | None, *, split: str) -> FakeTable:
        calls.append((name, config, split))
        return FakeTable([{"text": "a", "label": 1}, {"text": "b", "label": 0}], ["World", "Sports"])

    monkeypatch.setitem(sys.modules, "datasets", fake_of(load_dataset))
    examples, problems = read_examples("hub:org/news", labels=("World", "Sports"), split="test")
    assert problems == []
    assert examples == (Example("0", "a", "Sports"), Example("1", "b", "World"))
    assert calls == [("org/news", None, "test")]


def test_rows_without_a_label_and_columns_of_other_names(monkeypatch: pytest.MonkeyPatch) -> None:
    tables = {
        "unlabeled": FakeTable([{"text": "a", "label": -1}], ["World", "Sports"]),
        "other": FakeTable([{"premise": "a", "label": 0}], ["no", "yes"]),
    }
    monkeypatch.setitem(sys.modules, "datasets", fake_of(lambda name, config, split: tables[name]))
    _, (problem,) = read_examples("hub:unlabeled", labels=("World", "Sports"))
    assert str(problem).startswith("hub:unlabeled[0]: label is -1, which means")
    _, (problem,) = read_examples("hub:other", labels=("no", "yes"))
    assert "no field 'sentence' (or input or text); the fields are: premise, label" in str(problem)


def test_a_data_set_that_does_not_exist_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*_: Any, **__: Any) -> None:
        raise FileNotFoundError("Dataset 'org/nothing' doesn't exist on the Hub\nmore lines")

    monkeypatch.setitem(sys.modules, "datasets", fake_of(load_dataset))
    examples, (problem,) = read_examples("hub:org/nothing", labels=None)
    assert examples == ()
    assert str(problem).endswith(
        "could not be loaded from the hub: Dataset 'org/nothing' doesn't exist on the Hub"
    )


def test_without_the_package_the_message_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"datasets is not installed; pip install datasets"):
        read_examples("hub:imdb", labels=None)


def test_half_of_a_character_in_a_row_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    table = FakeTable([{"text": "fine", "label": "a"}, {"text": "x \ud83d", "label": "a"}], None)
    monkeypatch.setitem(sys.modules, "datasets", fake_of(lambda name, config, split: table))
    _, (problem,) = read_examples("hub:emoji", labels=None)
    assert str(problem).startswith("hub:emoji[1]: text holds \\ud83d, which is half of a character")
