"""Configurations from files, recipes and overrides: what they mean, and each mistake named where it is."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from nlora import config_file
from nlora.config import Config, Frozen
from nlora.config_file import (
    LoadedConfig,
    differences,
    dump,
    load_config,
    recipe_description,
    recipe_names,
    recipe_text,
)
from nlora.errors import InputErrors
from nlora.yaml_lines import read_yaml, to_yaml

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


def test_a_file_becomes_typed_values(write: Any) -> None:
    loaded = load_config(write(GOOD))
    config = loaded.config
    assert [task.name for task in config.tasks] == ["agnews", "tickets"]
    assert config.method.options == {
        "penalty": "update_l1",
        "weight": 1e-5,
    }  # 1e-5 without a point is a number
    assert config.train.learning_rate == 1e-3
    assert config.train_options("tickets").learning_rate == 5e-4
    assert config.train_options("tickets").epochs == 2
    assert config.output_dir == "runs/mine"
    assert (loaded.source_path, loaded.base_folder) == (Path("my.yaml"), Path())


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


def test_every_mistake_at_once_in_the_order_of_the_file(write: Any) -> None:
    text = """\
modle: x
tasks: [agnews, yahoo]
train:
  epochs: ten
  epoch: 3
  batch_size: 0
lora: {alpha: true}
stages:
  yaho: {train: {epochs: 2}}
"""
    assert mistakes(write(text), ["train.seed=3", "evaluate.decode=label"]) == [
        "my.yaml:1: modle: unknown key; did you mean 'model'?",
        "my.yaml:4: train.epochs: must be a number > 0, not 'ten'",
        "my.yaml:5: train.epoch: unknown key; did you mean 'epochs'?",
        "my.yaml:6: train.batch_size: must be a whole number >= 1, not 0",
        "my.yaml:7: lora.alpha: must be a number > 0, not true",
        "my.yaml:9: stages.yaho: no task is called 'yaho'; did you mean 'yahoo'?",
        "train.seed=3: unknown key; did you mean 'seed' at the top level?",
        "evaluate.decode=label: must be labels or generate, not 'label'; did you mean 'labels'?",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("epochs: 3\ntasks: [a]", "my.yaml:1: epochs: unknown key; did you mean 'train.epochs'?"),
        ("name: x", "my.yaml: tasks: the key is missing: the tasks, in the order of learning"),
        ("tasks: []", "my.yaml:1: tasks: must be a list that is not empty, not an empty list"),
        ("tasks: agnews", "my.yaml:1: tasks: must be a list that is not empty, not 'agnews'"),
        ("tasks:\n- 3", "my.yaml:2: tasks.0: must be a name or a mapping of keys, not 3"),
        ("tasks:\n- type: TC", "my.yaml:2: tasks.0.name: the key is missing: unique within the run"),
        ("tasks: [a, b, a]", "my.yaml:1: tasks.2: a second task is called 'a'; each needs a name of its own"),
        (
            "tasks: [{name: a/b}]",
            "my.yaml:1: tasks.0.name: must be usable in a folder's name, without / or \\, not 'a/b'",
        ),
        (
            "tasks:\n- {name: t, train: a}",
            "my.yaml:2: tasks.0: task 't' has no 'test' file; a task of one's own needs both",
        ),
        (
            "tasks:\n- name: t\n  labels: [yes, other]",
            "my.yaml:3: tasks.0.labels.0: must be text, not yes; put it in quotes",
        ),
        ("tasks: [a]\nname: 5", "my.yaml:2: name: must be text that is not empty, not 5; put it in quotes"),
        (
            "tasks: [a]\ntrain:",
            "my.yaml:2: train: must be a mapping of keys, not null; leave the key out for its default",
        ),
        (
            "tasks: [a]\ntrain: {epochs: .inf}",
            "my.yaml:2: train.epochs: must be a finite number > 0, not .inf",
        ),
        (
            "tasks: [a]\nlora: {targets: q}",
            "my.yaml:2: lora.targets: must be a list of texts, or null, not 'q'",
        ),
        ("tasks: [a]\nseed: 1.5", "my.yaml:2: seed: must be a whole number >= 0 and < 4294967296, not 1.5"),
        (
            "tasks: [a]\nseed: 1\nseed: 2",
            "my.yaml:3: seed: the key is there twice, first in line 2; keep one of them",
        ),
        (
            "tasks: [a]\ntrain:\n  batch_size: 8\n  micro_batch_size: 3",
            "my.yaml:2: train: batch_size 8 is not a multiple of micro_batch_size 3",
        ),
        (
            "tasks: [a]\nstages:\n  a:\n    train: {micro_batch_size: 3}",
            "my.yaml:4: stages.a.train: batch_size 32 is not a multiple of micro_batch_size 3",
        ),
        (
            "tasks: [a]\nstages:\n  a:\n    train:\n      epochs: -1",
            "my.yaml:5: stages.a.train.epochs: must be a number > 0, not -1",
        ),
        (
            "tasks: [a]\nstages:\n  a:\n    train: {epoch: 1}",
            "my.yaml:4: stages.a.train.epoch: unknown key; did you mean 'epochs'?",
        ),
        (
            "tasks: [a]\nstages:\n  a: {trian: {epochs: 1}}",
            "my.yaml:3: stages.a.trian: unknown key; did you mean 'train'?",
        ),
        ("tasks: [a]\noutput_dir: my.yaml", "my.yaml:2: output_dir: my.yaml is a file; choose a folder"),
        ("tasks: [a]\noutput_dir: my.yaml/run", "my.yaml:2: output_dir: my.yaml is a file; choose a folder"),
        ("tasks: [a]\n1: 2", "my.yaml:2: the key 1 must be text; put it in quotes: '1'"),
        ("", "my.yaml: is empty; a run needs at least 'tasks: [...]'"),
        ("# nothing\n", "my.yaml: is empty; a run needs at least 'tasks: [...]'"),
        (
            "- a\n- b",
            "my.yaml: must hold keys such as 'tasks: [...]' at its top level, not a list or a single value",
        ),
        (
            "tasks: [a]\nname: x: y",
            "my.yaml:2: not YAML: mapping values are not allowed here; a text with ': ' in it needs quotes",
        ),
        (
            "train:\n\tepochs: 1",
            "my.yaml:2: not YAML: found character '\\t' that cannot start any token; "
            "indent with spaces, not tabs",
        ),
        ("tasks: [a\nname: x", "my.yaml:2: not YAML: expected ',' or ']', but got ':'"),
        ("a: &x\n  b: *x\n", "my.yaml:2: a.b: refers to itself through an alias; write the value out"),
        ("name: 2024-99-99", "my.yaml:1: not YAML: month must be in 1..12"),
    ],
)
def test_one_mistake_gives_one_line(write: Any, text: str, expected: str) -> None:
    found = mistakes(write(text))
    assert len(found) == 1, found
    assert found[0] == expected


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


def test_python_objects_are_not_built(write: Any) -> None:
    found = mistakes(write("name: !!python/object/apply:os.getcwd []\ntasks: [a]"))
    assert len(found) == 1
    assert found[0].startswith("my.yaml:1: not YAML: could not determine a constructor")


def test_a_file_in_another_encoding_is_named(write: Any) -> None:
    path = write(GOOD)
    Path(path).write_bytes("name: caf\xe9".encode("latin-1"))
    assert mistakes(path) == ["my.yaml: not UTF-8 text (byte 10); save it as UTF-8"]


def test_anchors_and_merges_mean_what_they_mean_in_yaml(write: Any) -> None:
    text = "tasks: [a, b]\nstages:\n  a: &a {train: {epochs: 5}}\n  b:\n    <<: *a\n    method: {weight: 1}\n"
    config = load_config(write(text)).config
    assert config.train_options("b").epochs == 5
    assert config.method_options("b") == {"weight": 1}


@pytest.fixture
def recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that ships two recipes."""
    folder = tmp_path / "recipes"
    folder.mkdir()
    comment = "# Four tasks on a laptop in ten minutes. Then more.\n# nlora run demo\n"
    demo = f"{comment}\ntasks: [a]\ntrain: {{epochs: 2}}\n"
    (folder / "demo.yaml").write_text(demo, encoding="utf-8")
    (folder / "order_1.yaml").write_text("tasks: [b]\n", encoding="utf-8")
    (folder / "notes.txt").write_text("no recipe", encoding="utf-8")
    monkeypatch.setattr(config_file, "_recipes", lambda: folder)
    monkeypatch.chdir(tmp_path)
    return folder


def test_recipes_by_name(recipes: Path) -> None:
    assert recipe_names() == ["demo", "order_1"]
    assert recipe_description("demo") == "Four tasks on a laptop in ten minutes."
    assert recipe_description("order_1") == ""
    assert recipe_text("order_1") == "tasks: [b]\n"
    loaded = load_config("demo", ["train.epochs=3"])
    assert (loaded.source_path, loaded.base_folder) == (None, Path())
    assert loaded.config.train.epochs == 3
    unknown = "stages={b: {}}: stages.b: no task is called 'b'; the tasks are a"
    assert mistakes("demo", ["train={}", "stages={b: {}}"]) == [unknown]


def test_what_is_not_there_is_said_with_what_is(recipes: Path) -> None:
    assert mistakes("dem") == [
        "dem: no such file, and no recipe of that name; did you mean 'demo'?; the recipes are demo, order_1"
    ]
    assert mistakes("recipes")[0].startswith("recipes: is a folder, not a YAML file")
    with pytest.raises(InputErrors, match="no such recipe; did you mean 'order_1'"):
        recipe_text("order1")


def test_every_shipped_recipe_loads_and_describes_itself() -> None:
    for name in recipe_names():
        assert load_config(name).config.tasks
        assert recipe_description(name)


class WeightOptions(Frozen):
    weight: float = Field(1.0, ge=0)


def test_a_methods_own_mistakes_have_lines_too(write: Any) -> None:
    text = (
        "tasks: [a, b]\nmethod:\n  name: m\n  weight: -1\n  wieght: 2\nstages:\n  b: {method: {weight: x}}\n"
    )
    loaded = load_config(write(text))

    def found(task_name: str | None) -> list[str]:
        options = loaded.config.method_options(task_name) if task_name else loaded.config.method.options
        with pytest.raises(ValidationError) as caught:
            WeightOptions.model_validate(options)
        return [str(problem) for problem in loaded.method_problems(caught.value, WeightOptions, task_name)]

    unknown = "my.yaml:5: method.wieght: unknown key; did you mean 'weight'?"
    assert found(None) == ["my.yaml:4: method.weight: must be a number >= 0, not -1", unknown]
    assert found("b") == ["my.yaml:7: stages.b.method.weight: must be a number >= 0, not 'x'", unknown]


def test_a_written_configuration_reads_back(write: Any) -> None:
    config = load_config(write(GOOD)).config
    assert load_config(write(dump(config))).config == config
    assert list(yaml.safe_load(dump(config))) == list(Config.model_fields)


def test_the_file_that_a_run_writes_is_a_configuration(write: Any) -> None:
    config = load_config(write(GOOD)).config
    run_file = to_yaml(
        {"config": config.model_dump(mode="json"), "versions": {"torch": "2"}, "created": "now"}
    )
    assert load_config(write(run_file), ["seed=1"]).config == config.model_copy(update={"seed": 1})
    found = mistakes(write("versions: {}\nconfig:\n  tasks: [a]\n  sead: 1\n"))
    assert found == ["my.yaml:4: sead: unknown key; did you mean 'seed'?"]


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


def test_differences_name_the_dotted_key() -> None:
    def values_of(**changes: Any) -> dict[str, Any]:
        return Config.model_validate({"tasks": ["a", "b"], **changes}).model_dump(mode="json")

    assert differences(values_of(), values_of()) == []
    assert differences(values_of(), values_of(train={"epochs": 2}, seed=7)) == [
        "train.epochs: 1.0 in the folder, 2.0 now",
        "seed: 42 in the folder, 7 now",
    ]
    changed = values_of(tasks=["a"], method={"name": "nlora", "weight": 1}, lora={"targets": ["q"]})
    assert set(differences(values_of(), changed)) >= {
        'tasks.1.name: "b" in the folder, absent now',
        "method.weight: absent in the folder, 1 now",
        'lora.targets: null in the folder, ["q"] now',
    }


def test_a_loaded_configuration_cannot_change(write: Any) -> None:
    loaded: LoadedConfig = load_config(write(GOOD))
    with pytest.raises(ValidationError):
        loaded.config.seed = 1  # type: ignore[misc]
