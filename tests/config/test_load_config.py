"""Configurations from files, recipes and overrides: what they mean, and each mistake named where it is."""

from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from nlora.config import load
from nlora.config.load import (
    LoadedConfig,
    dump,
    load_config,
    recipe_description,
    recipe_names,
    recipe_text,
)
from nlora.config.schema import Config
from nlora.config.yaml_positions import to_yaml
from nlora.errors import InputErrors


def _no_date() -> str:
    """What this Python says of the month 99; newer ones say more."""
    with pytest.raises(ValueError, match="month must be in") as caught:
        date(2024, 99, 99)
    return str(caught.value)


NO_DATE = _no_date()

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


@pytest.mark.parametrize("name", ["a\x1b[31m", "a\nb", "a\u202eb"])
def test_a_name_that_steers_a_terminal_or_breaks_a_table_is_refused(name: str) -> None:
    with pytest.raises(InputErrors, match=r"name: .*a line end or a character that steers a terminal"):
        load_config({"tasks": ["agnews"], "name": name})


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
        ("name: x", "my.yaml: tasks: the key is missing: the tasks, in learning order"),
        ("tasks: []", "my.yaml:1: tasks: must be a list that is not empty, not an empty list"),
        (
            "tasks: [a]\nquantise: 4bit",
            "my.yaml:2: quantise: unknown key; use quantize: 4bit or 8bit",
        ),
        (
            "tasks: [a]\nkeep_unlabelled: true",
            "my.yaml:2: keep_unlabelled: unknown key; use protocol: released, which keeps them",
        ),
        (
            "tasks: [a]\nmethod: {name: ewc, sampels: 3}",
            "my.yaml:2: method.sampels: unknown key; did you mean 'samples'?",
        ),
        (
            "tasks: [a]\nmethod: ewcc",
            "my.yaml:2: method: unknown method 'ewcc'; did you mean 'ewc'?",
        ),
        (
            "tasks: [a]\nstages:\n  a: {method: {wieght: 1}}",
            "my.yaml:3: stages.a.method.wieght: unknown key; did you mean 'weight'?",
        ),
        ("tasks: agnews", "my.yaml:1: tasks: must be a list that is not empty, not 'agnews'; write [agnews]"),
        ("tasks:\n- 3", "my.yaml:2: tasks.0: must be a name or a mapping of keys, not 3"),
        ("tasks:\n- type: TC", "my.yaml:2: tasks.0.name: the key is missing: unique within the run"),
        ("tasks: [a, b, a]", "my.yaml:1: tasks.2: 'a' is also the name of tasks.0; rename one"),
        (
            "tasks: [a, {name: A}]",
            "my.yaml:1: tasks.1.name: 'A' differs only by case from the name of tasks.0; rename one",
        ),
        (
            "tasks: [{name: a/b}]",
            "my.yaml:1: tasks.0.name: must be usable in a folder's name, without / or \\, not 'a/b'",
        ),
        (
            "tasks:\n- {name: t, train: a}",
            "my.yaml:2: tasks.0: task 't' has no 'test' file; a task with files of its own needs both; "
            "without one, test_share: 0.1 tests on a tenth of 'train'",
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
            "tasks: [a]\ntrain: {epochs: .nan}",
            "my.yaml:2: train.epochs: must be a finite number > 0, not .nan",
        ),
        (
            "tasks: [a]\ntrain: {epochs: Infinity}",
            "my.yaml:2: train.epochs: must be a number > 0, not 'Infinity'",
        ),
        (
            "tasks: [a]\nlora: {targets: q}",
            "my.yaml:2: lora.targets: must be a list of texts, or null, not 'q'; write [q]",
        ),
        ("tasks: [a]\nseed: 1.5", "my.yaml:2: seed: must be a whole number >= 0 and < 4294967296, not 1.5"),
        (
            "tasks: [a]\nseed: 1\nseed: 2",
            "my.yaml:3: seed: duplicate key, first used on line 2; keep one of them",
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
        ("name: 2024-99-99", f"my.yaml:1: not YAML: {NO_DATE}"),
    ],
)
def test_one_mistake_gives_one_line(write: Any, text: str, expected: str) -> None:
    found = mistakes(write(text))
    assert len(found) == 1, found
    assert found[0] == expected


def test_python_objects_are_not_built(write: Any) -> None:
    found = mistakes(write("name: !!python/object/apply:os.getcwd []\ntasks: [a]"))
    assert len(found) == 1
    assert found[0].startswith("my.yaml:1: not YAML: could not determine a constructor")


def test_a_file_in_another_encoding_is_named(write: Any) -> None:
    path = write(GOOD)
    Path(path).write_bytes("name: caf\xe9".encode("latin-1"))
    assert mistakes(path) == ["my.yaml: not UTF-8 text (byte 10); save it as UTF-8"]
    for encoding in ("utf-16", "utf-16-le", "utf-16-be"):
        Path(path).write_bytes(GOOD.encode(encoding))
        assert mistakes(path) == ["my.yaml: is UTF-16; save it as UTF-8"]


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
    monkeypatch.setattr(load, "_recipes", lambda: folder)
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


def test_a_loaded_configuration_cannot_change(write: Any) -> None:
    loaded: LoadedConfig = load_config(write(GOOD))
    with pytest.raises(ValidationError):
        loaded.config.seed = 1  # type: ignore[misc]


def test_a_stage_leaves_with_its_task(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("tasks: [a, b]\nstages:\n  a: {train: {epochs: 2}}\n  b: {train: {epochs: 3}}\n")
    assert set(load_config(str(path), ["tasks=[b, c]"]).config.stages) == {"b"}
    with pytest.raises(InputErrors, match="no task is called 'a'"):
        load_config(str(path), ["tasks=[b]", "stages.a.train.epochs=1"])
    path.write_text("tasks: [a]\nstages: {aa: {train: {epochs: 2}}}\n")  # never a task: a slip of the pen
    with pytest.raises(InputErrors, match="no task is called 'aa'"):
        load_config(str(path), ["tasks=[a, b]"])


def test_adapters_before_the_tasks_do_not_move_the_places_of_mistakes(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        'after:\n- adapters/old\n- "bad\\0name"\n'
        "tasks:\n- {name: a, train: a.jsonl, seed: one}\n- {name: b, labels: 5}\n- {name: A}\n"
    )
    with pytest.raises(InputErrors) as told:
        load_config(path)
    where = list(dict.fromkeys(problem.where for problem in told.value.problems))
    assert where == [
        f"{path}:3: after.1",
        f"{path}:5: tasks.0.seed",
        f"{path}:6: tasks.1.labels",
        f"{path}:7: tasks.2.name",
    ]
    assert "is also" not in str(told.value)
    assert "of tasks.0; rename one" in str(told.value)


def test_the_places_of_loaded_tasks_and_adapters() -> None:
    places = load_config({"after": ["x/old"], "tasks": ["agnews", "yahoo"]}, ["tasks.1=amazon"]).places
    assert places.where(("tasks", 0, "adapter")) == ("config", None, ("after", 0))
    assert places.where(("tasks", 1, "train")) == ("config", None, ("tasks", 0, "train"))
    assert places.where(("tasks", 2, "name")).source == "tasks.1=amazon"


def test_an_adapter_that_is_no_text_is_a_mistake() -> None:
    with pytest.raises(InputErrors, match=r"config: after\.1: must be text, not 5"):
        load_config({"after": ["x/old", 5], "tasks": ["agnews"]})


@pytest.mark.parametrize("name", ["a,b", " ", " a", "a "])
def test_a_name_that_no_list_of_names_can_hold(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputErrors, match=rf"tasks\.1: the name '{name}' has a comma or spaces around it"):
        load_config({"tasks": ["x", name]})
    config = load_config({"tasks": ["x", "y"]}).config.model_dump(mode="json")
    config["tasks"][1]["name"] = name
    (tmp_path / "run.yaml").write_text(to_yaml({"config": config, "versions": {}}))
    assert load_config(tmp_path / "run.yaml").config.tasks[1].name == name  # of a run from before


def test_an_empty_path_is_named() -> None:
    task = {"name": "a", "train": "", "test": "b.jsonl"}
    with pytest.raises(
        InputErrors, match=r"^config: tasks\.0\.train: is empty; give a path, or leave the key out$"
    ):
        load_config({"tasks": [task]})


def test_a_second_document_is_named(tmp_path: Path) -> None:
    (tmp_path / "two.yaml").write_text("tasks: [a]\n---\ntasks: [b]\n")
    with pytest.raises(
        InputErrors, match=r"two\.yaml:2: not YAML: a second document begins here; a run is one"
    ):
        load_config(tmp_path / "two.yaml")
