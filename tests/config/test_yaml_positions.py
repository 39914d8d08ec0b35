"""YAML that is written reads back, whatever its texts look like."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nlora.config.places import Place
from nlora.config.yaml_positions import Document, read_yaml, to_yaml

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
values = st.recursive(
    scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8
)


@given(st.dictionaries(st.text(), values, min_size=1))
def test_any_plain_values_survive_writing_and_reading(data: dict[str, Any]) -> None:
    document = read_yaml(to_yaml(data), "x")
    assert document.problems == ()
    assert document.data == data


@pytest.mark.parametrize(
    "text", ["1e5", "1e-5", "-2E+3", ".5e3", "yes", "null", "1.5", "12:30", "0x1f", "=", "<<"]
)
def test_texts_that_look_like_something_else_stay_texts(text: str) -> None:
    assert read_yaml(to_yaml({text: [text]}), "x").data == {text: [text]}


def test_lines_and_overrides_name_the_nearest_key_that_is_there() -> None:
    places = read_yaml("tasks:\n- a\n- name: b\ntrain:\n  epochs: 1\n", "f").places
    assert places.problem(("tasks", 1, "name"), "").where == "f:3: tasks.1.name"
    assert places.problem(("tasks", 1, "labels", 0), "").where == "f:3: tasks.1.labels.0"
    assert places.problem(("train", "epochs"), "").where == "f:5: train.epochs"
    assert places.problem(("seed",), "").where == "f: seed"
    assert places.problem((), "").where == "f"
    changed = places.overridden(("train",), Place("train={epochs: 2}"), {})
    assert changed.problem(("train", "epochs"), "").where == "train={epochs: 2}: train.epochs"
    assert changed.problem(("tasks", 0), "").where == "f:2: tasks.0"
    assert places.inside(("train",)).problem(("epochs",), "").where == "f:5: epochs"


def test_every_value_has_the_line_that_a_plain_search_finds() -> None:
    text = "a: x1\nb:\n  - x2\n  - c: x3\n    d: {e: x4, f: [x5,\n x6]}\n"
    places = read_yaml(text, "f").places
    keys = {
        "x1": ("a",),
        "x2": ("b", 0),
        "x3": ("b", 1, "c"),
        "x4": ("b", 1, "d", "e"),
        "x6": ("b", 1, "d", "f", 1),
    }
    for value, key in keys.items():
        line = next(number for number, line in enumerate(text.splitlines(), 1) if value in line)
        assert places.lines[key] == line, value


def test_aliases_of_aliases_do_not_take_forever() -> None:
    """Level n has 9 ** n values, if every alias is followed, as everything does that gets the data."""

    def document(levels: int) -> Document:
        lines = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, levels + 1)]
        return read_yaml("a0: &a0 [x]\n" + "\n".join(lines), "f")

    assert document(3).problems == ()
    assert len(document(3).data["a3"]) == 9
    for levels in (5, 11, 40):
        assert [str(problem) for problem in document(levels).problems] == [
            "f: aliases (*name) add more than 100,000 values; write out what is needed"
        ]


def test_a_pair_of_escapes_is_one_character_and_half_of_one_is_a_mistake() -> None:
    """As JSON writes an emoji, which PyYAML takes for two characters that no encoder can write."""
    document = read_yaml('labels: ["\\ud83d\\ude00", plain]\n"\\ud83d\\ude00": 1\n', "my.yaml")
    assert document.data == {"labels": ["\U0001f600", "plain"], "\U0001f600": 1}
    assert document.problems == ()
    text = 'tasks:\n- labels: [a, "b \\ud83d"]\n  instruction: "\\ude00"\n"\\ud83d": 1\n'
    half = "which is half of a character; correct the text, or leave the character out"
    assert [str(p) for p in read_yaml(text, "my.yaml").problems] == [
        f"my.yaml:2: tasks.0.labels.1: holds \\ud83d, {half}",
        f"my.yaml:3: tasks.0.instruction: holds \\ude00, {half}",
        f"my.yaml:4: holds \\ud83d, {half}",
    ]


@pytest.mark.parametrize("key", ["01", "010", "-0", "0x1", "+1"])
def test_numbers_that_yaml_writes_otherwise_are_no_keys_of_label_names(key: str) -> None:
    found = read_yaml(f"label_names:\n  0: a\n  -1: b\n  true: c\n  {key}: d\n", "my.yaml")
    (problem,) = found.problems
    assert str(problem) == f"my.yaml:5: the key {key} must be text; put it in quotes: '{key}'"
    assert not read_yaml("label_names: {0: a, -1: b, true: c}", "my.yaml").problems
