"""Overrides of single keys: what they mean, and that a wrong one is named by its own text."""

import enum
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from nlora.config.load import load_config
from nlora.config.overrides import Override, as_overrides, lost, parse
from nlora.config.places import Place
from nlora.errors import InputErrors

GOOD = """\
# a comment
name: mine
data: bench
tasks:
  - agnews
  - name: tickets
    train: a.jsonl
    test: b.jsonl
    labels: [billing, network]
method: {name: nlora, penalty: update_l1, weight: 1e-5}
train:
  epochs: 2
  learning_rate: 1e-3
stages:
  tickets: {train: {learning_rate: 5e-4}, method: {weight: 3}}
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """write(text) -> the path, relative to the current folder, of a YAML file with that text."""
    monkeypatch.chdir(tmp_path)

    def make(text: str, name: str = "my.yaml") -> str:
        Path(name).write_text(text, encoding="utf-8")
        return name

    return make


def mistakes(source: str, overrides: list[str] | None = None) -> list[str]:
    with pytest.raises(InputErrors) as caught:
        load_config(source, overrides or [])
    return [str(problem) for problem in caught.value.problems]


def test_overrides_win_and_later_ones_more(write: Any) -> None:
    path = write(GOOD)
    overrides = [
        "seed=7",
        "train.learning_rate=5e-4",
        "train.epochs=3",
        "train.epochs=4.5",
        "lora.targets=[q, v]",
    ]
    config = load_config(path, overrides).config
    assert (config.seed, config.train.learning_rate, config.train.epochs) == (7, 5e-4, 4.5)
    assert config.lora.targets == ("q", "v")
    assert load_config(path, ["evaluate.max_samples=null"]).config.evaluate.max_samples is None
    assert [t.name for t in load_config(path, ["tasks=[agnews, tickets]"]).config.tasks] == [
        "agnews",
        "tickets",
    ]


def test_tasks_of_the_file_are_chosen_by_their_names(write: Any) -> None:
    path = write(GOOD)
    config = load_config(path).config
    own = next(task for task in config.tasks if task.train is not None)
    chosen = load_config(path, [f"tasks=[{own.name}, other]"]).config.tasks
    assert chosen[0] == own
    assert (chosen[1].name, chosen[1].train) == ("other", None)


def test_overrides_reach_into_lists_and_short_forms(write: Any) -> None:
    path = write("data: d\ntasks: [a, b]\nmethod: nlora\ntrain:\n")
    config = load_config(
        path, ["tasks.0.name=c", "tasks.1.type=TC", "method.weight=0.5", "train.epochs=2"]
    ).config
    assert [(task.name, task.type) for task in config.tasks] == [("c", None), ("b", "TC")]
    assert config.method.name == "nlora"
    assert config.method.options == {"weight": 0.5}
    # A method by its name alone brings no options of another method along.
    assert load_config(write(GOOD), ["method=inclora", "stages={}"]).config.method.options == {}


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("seed", "seed: an override is a dotted key, '=' and a value, such as train.epochs=3"),
        ("a..b=1", "a..b=1: an override is a dotted key, '=' and a value, such as train.epochs=3"),
        ("tasks.2.name=x", "tasks.2.name=x: the list tasks has no place '2'; its places are 0 to 1"),
        ("name.first=x", "name.first=x: name is a single value and has no key 'first'"),
        ("train={epoch: 1}", "train={epoch: 1}: train.epoch: unknown key; did you mean 'epochs'?"),
        ("name=", "name=: must be text that is not empty, not null; leave the key out for its default"),
        ("name=@x", "name=@x: not YAML: found character '@' that cannot start any token; "
                    "put the value in quotes if it is text"),
    ],
)  # fmt: skip
def test_a_wrong_override_is_named_by_its_own_text(write: Any, override: str, expected: str) -> None:
    assert mistakes(write(GOOD), [override]) == [expected]


def test_an_override_mends_what_is_wrong_in_the_file(write: Any) -> None:
    path = write("tasks: [a]\ntrain: {epochs: ten}\n")
    assert load_config(path, ["train.epochs=3"]).config.train.epochs == 3


@pytest.mark.parametrize(
    ("overrides", "gone"),
    [
        (["method.weight=0.5", "method=nlora"], "method.weight=0.5"),
        (["train.epochs=3", "train={batch_size: 8}"], None),
        (["train.epochs=3", "train=null"], "train.epochs=3"),
        (["tasks.0.name=a", "tasks=[]"], "tasks.0.name=a"),
        (["stages.a.train.epochs=3", "stages.a={}", "stages.a.train.epochs=2"], None),
        (["method.name=olora", "method=nlora"], None),
        (["method.weight=0.5", "method={name: nlora, weight: 2}"], None),
        (["method=nlora", "method.weight=0.5"], None),
    ],
)
def test_what_a_later_override_throws_away_is_a_mistake(overrides: list[str], gone: str | None) -> None:
    found = lost(as_overrides(overrides, []))
    assert [problem.source for problem in found] == ([] if gone is None else [gone])


BASE = {
    "tasks": ["agnews"], "method": {"name": "olora", "weight": 0.7}, "lora": {"r": 4, "alpha": 8},
    "train": {"epochs": 3, "learning_rate": 5e-4, "batch_size": 8},
}  # fmt: skip


@pytest.mark.parametrize(
    ("typed", "mapping", "alone"),
    [
        ("train={epochs: 1}", {"train": {"epochs": 1}}, {"train.epochs": 1}),
        ("method={weight: 1}", {"method": {"weight": 1}}, {"method.weight": 1}),
        ("lora={r: 2}", {"lora": {"r": 2}}, {"lora.r": 2}),
        ("evaluate={general: {}}", {"evaluate": {"general": {}}}, {"evaluate.general": {}}),
        (
            "stages.agnews.train={epochs: 1}",
            {"stages.agnews.train": {"epochs": 1}},
            {"stages.agnews.train.epochs": 1},
        ),
    ],
)
def test_a_mapping_leaves_the_other_keys_of_its_section_alone(
    typed: str, mapping: dict[str, Any], alone: dict[str, Any]
) -> None:
    base = {**BASE, "stages": {"agnews": {"train": {"batch_size": 4}}}}
    expected = load_config(base, alone).config
    assert load_config(base, [typed]).config == load_config(base, mapping).config == expected
    assert expected.method.name == "olora"
    assert (expected.train.learning_rate, expected.train_options("agnews").batch_size) == (5e-4, 4)


def test_a_method_with_its_name_replaces_the_whole_method() -> None:
    config = load_config(BASE, ["method={name: ella}"]).config
    assert (config.method.name, config.method.options) == ("ella", {})


def test_names_of_labels_may_be_numbers() -> None:
    base = {"tasks": [{"name": "a", "train": "a.jsonl", "test": "b.jsonl"}]}
    for given in (
        ["tasks.0.label_names={1: good, 0: bad}"], {"tasks.0.label_names": {1: "good", 0: "bad"}},
    ):  # fmt: skip
        (task,) = load_config(base, given).config.tasks
        assert task.label_names == {"1": "good", "0": "bad"}


def test_values_of_other_libraries_and_names() -> None:
    class Kind(str, enum.Enum):  # noqa: UP042 - as older code has it
        mine = "ella"

    config = load_config(
        BASE, {"method": Kind.mine, "evaluate.zero_shot": np.bool_(True), "seed": np.int64(3)}
    ).config
    assert (config.method.name, config.evaluate.zero_shot, config.seed) == ("ella", True, 3)


def test_the_folder_follows_a_new_name_of_a_config() -> None:
    config = load_config({**BASE, "name": "a"}).config
    assert config.output_dir == "runs/a"
    assert load_config(config, {"name": "b"}).config.output_dir == "runs/b"
    other = config.model_copy(update={"output_dir": "elsewhere"})
    assert load_config(other, {"name": "b"}).config.output_dir == "elsewhere"


def test_the_order_of_a_mapping_does_not_matter() -> None:
    loaded = load_config({"tasks": ["agnews"]}, {"method.weight": 0.5, "method": "nlora"})
    assert loaded.config.method.options == {"weight": 0.5}


def read_back(value: Any) -> Any:
    """What an override means after it was written for the shell."""
    return parse(Override(("a", "b"), value, Place("")).text).value


@hypothesis.given(st.text(st.characters(exclude_categories=("Cs",))))
def test_a_text_is_read_back_as_it_was(text: str) -> None:
    assert read_back(text) == text
    assert read_back([text]) == [text]


@pytest.mark.parametrize(
    "character", ["\x7f", "\x80", "\x85", "\u2028", "\u2029", "\ufeff", "\ufffe", "\uffff"]
)
def test_characters_that_yaml_treats_in_its_own_way(character: str) -> None:
    """Editors leave U+0085 and U+2028 in texts; YAML folds them as line breaks, and refuses others."""
    text = f"a{character}b"
    assert read_back(text) == text
    assert read_back([text]) == [text]
