"""The keys of a task with files of its own, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nlora.config.load import dump, load_config
from nlora.config.task_source import TaskSource
from nlora.errors import InputErrors

FILES = {"name": "t", "train": "a.csv", "test": "b.csv"}


def task_of(**keys: Any) -> TaskSource:
    return load_config({"tasks": [{**FILES, **keys}]}).config.tasks[0]


@pytest.mark.parametrize("names", [["neg", "pos"], {0: "neg", 1: "pos"}, {"0": "neg", "1": "pos"}])
def test_label_names_are_a_list_or_a_mapping_and_become_the_labels(names: Any) -> None:
    task = task_of(label_names=names)
    assert task.label_names == {"0": "neg", "1": "pos"}
    assert task.labels == ("neg", "pos")
    assert task_of(label_names=names, labels=["pos", "neg"]).labels == ("pos", "neg")


def test_label_names_of_a_yaml_file_may_have_numbers_and_truth_values_as_keys(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "tasks:\n"
        "- {name: a, train: a.csv, test: b.csv, label_names: {1: low, 2: high}}\n"
        "- {name: b, train: a.csv, test: b.csv, label_names: {true: spam, false: ham}}\n"
    )
    config = load_config(str(file)).config
    assert [task.label_names for task in config.tasks] == [
        {"1": "low", "2": "high"},
        {"true": "spam", "false": "ham"},
    ]
    file.write_text(dump(config))
    assert load_config(str(file)).config == config
    file.write_text("tasks: [{name: a, train: a.csv, test: b.csv, label_names: {yes: spam, 'no': ham}}]")
    with pytest.raises(InputErrors, match="the key yes must be text; put it in quotes: 'yes'"):
        load_config(str(file))


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"template": "a {} b"}, "tasks.0.template: a place has more or less in it than the name of a column"),
        ({"template": "{a:3}"}, "a place is {column}, and {{ and }} are braces of the text"),
        ({"template": "{a"}, "tasks.0.template: expected '}' before end of string"),
        ({"template": "no place"}, "tasks.0.template: has no place for a column, such as {text}"),
        ({"template": "{a}", "columns": {"text": "q"}}, "sets columns.text and template"),
        ({"columns": {"txt": "q"}}, "tasks.0.columns.txt: unknown key; did you mean 'text'?"),
        ({"text_column": "q"}, "tasks.0.text_column: unknown key; use tasks.N.columns.text"),
        ({"id2label": {}}, "tasks.0.id2label: unknown key; use tasks.N.label_names"),
        ({"test_share": 0.1}, "sets test and test_share; keep one of them"),
        ({"test": None, "test_share": 1.0}, "tasks.0.test_share: must be a number > 0 and < 1, or null, not 1.0"),
        ({"train": None, "test": None, "test_share": 0.1}, "has no 'train' file"),
        ({"train": None, "test": None, "adapter": "a", "test_share": 0.1}, "has no 'train' file"),
        ({"test_size": 0.1}, "unknown key; use tasks.N.test_share"),
        ({"label_names": "yes"}, "tasks.0.label_names: must be a list of words, or a mapping from value to word"),
        ({"label_names": [1, "b"]}, "tasks.0.label_names.0: must be text, not 1; put it in quotes"),
        ({"label_names": ["a", "b"], "labels": ["a", "c"]}, "'b', which is not one of its labels: a, c"),
        ({"train": None, "test": None, "columns": {"text": "q"}}, "sets columns, but has no files of its own"),
        ({"train": None, "test": None, "template": "{q}"}, "sets template, but has no files of its own"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line_each(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(InputErrors) as caught:
        task_of(**keys)
    (problem,) = caught.value.problems
    assert said in str(problem)
