"""Drawn configurations: what is valid survives every way to write it, and anything else is one clear line a mistake."""

from __future__ import annotations

import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from nlora.config.load import dump, load_config
from nlora.config.paths import path_problem
from nlora.config.schema import Config
from nlora.errors import InputErrors, printable

WORD = st.text(
    st.characters(exclude_categories=("Cc", "Cs"), exclude_characters="/\\~"), min_size=1, max_size=12
)
TEXT = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=20)
PATH = TEXT.filter(bool)
COUNT = st.integers(1, 10**6)
POSITIVE = st.floats(1e-9, 1e9)
SHARE = st.floats(0.01, 0.99)


def some(**values: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """A mapping with any of these keys."""
    return st.fixed_dictionaries({}, optional=values)


TRAIN = some(
    epochs=POSITIVE | COUNT, batch_size=COUNT, learning_rate=POSITIVE, schedule=st.sampled_from(["linear", "cosine"]),
    warmup_ratio=SHARE, early_stopping=st.none() | some().map(lambda _: {"patience": 2}),
    label_weights=st.none() | st.just("balanced") | st.dictionaries(TEXT, POSITIVE, min_size=1, max_size=3),
    max_samples=st.none() | COUNT, report_to=st.just(["wandb"]), gradient_checkpointing=st.booleans(),
)  # fmt: skip
NAME = WORD.filter(lambda name: name == name.strip() and "," not in name)
TASK = NAME | st.fixed_dictionaries(
    {"name": NAME, "train": WORD, "test": WORD},
    optional={
        "type": TEXT, "instruction": TEXT, "template": st.just("{a} {{b}} {c}"), "quoting": st.none(),
        "labels": st.none() | st.lists(TEXT, max_size=3), "columns": some(label=WORD),
        "metric": st.sampled_from(["accuracy", "rougeL", "./score.py:f"]),
    },
)  # fmt: skip
TARGETS = st.none() | st.just("all-linear") | st.lists(WORD, min_size=1)
METHOD = st.sampled_from(["nlora", "inclora"]) | st.builds(
    dict, name=st.just("nlora"), weight=st.floats(0, 10)
)
TASKS = st.lists(
    TASK,
    min_size=1,
    max_size=3,
    unique_by=lambda task: (task if isinstance(task, str) else task["name"]).casefold(),
)
VALID = st.fixed_dictionaries(
    {"tasks": TASKS},
    optional={
        "name": WORD, "protocol": st.sampled_from(["released", "repaired"]), "model": PATH, "data": st.none() | PATH,
        "method": METHOD, "seed": st.integers(0, 2**32 - 1), "train": TRAIN,
        "lora": some(r=COUNT, alpha=POSITIVE, dropout=SHARE, targets=TARGETS),
        "evaluate": some(batch_size=COUNT, max_samples=st.none() | COUNT, validation_share=SHARE),
    },
)  # fmt: skip
SCALAR = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(max_size=4) | st.dates()
)
KEYS = st.sampled_from([*Config.model_fields, "epochs", "weight", "patience", "label_names", "columns", ""])
JUNK = st.recursive(
    SCALAR, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS | st.text(), inner, max_size=4)
)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """file(text) -> the path of a YAML file with it."""
    path = tmp_path_factory.mktemp("config") / "my.yaml"

    def write(text: str) -> Path:
        path.write_text(text, encoding="utf-8")
        return path

    return write


@given(values=VALID)
def test_every_way_to_write_a_configuration_gives_the_same(
    file: Callable[[str], Path], values: dict[str, Any]
) -> None:
    config = load_config(values).config
    assert load_config(file(dump(config))).config == config
    assert load_config(file(json.dumps(values))).config == config
    assert load_config(file(yaml.safe_dump(values))).config == config
    tasks = values.pop("tasks")
    overrides = [f"{key}={json.dumps(value)}" for key, value in values.items()]
    assert load_config({"tasks": tasks}, overrides).config == config
    assert load_config({"tasks": tasks}, values).config == config


def check(error: InputErrors) -> None:
    """Each mistake is one line that any terminal shows, with its place."""
    for problem in error.problems:
        assert problem.where
        assert problem.what.strip()
        assert len(str(problem).splitlines()) == 1
        assert str(problem).encode()


@st.composite
def almost_valid(draw: st.DrawFn) -> dict[str, Any]:
    """A valid configuration with one value replaced by something else, or one key added."""
    values = draw(VALID)
    here: Any = values
    while True:
        keys = list(here) if isinstance(here, dict) else list(range(len(here)))
        key = draw(st.sampled_from(keys) | KEYS if isinstance(here, dict) else st.sampled_from(keys))
        inner = here.get(key) if isinstance(here, dict) else here[key]
        if not (isinstance(inner, dict | list) and inner and draw(st.booleans())):
            here[key] = draw(JUNK)
            return values
        here = inner


@given(values=almost_valid() | st.dictionaries(KEYS, JUNK, max_size=5))
def test_anything_else_is_named_key_by_key(file: Callable[[str], Path], values: dict[str, Any]) -> None:
    try:
        config = load_config(values).config
    except InputErrors as error:
        check(error)
    else:
        assert load_config(file(dump(config))).config == config
    try:
        load_config(file(yaml.safe_dump(values)))
    except InputErrors as error:
        check(error)


@given(
    text=st.text(st.characters(exclude_categories=("Cs",)), max_size=60),
    overrides=st.lists(st.text(max_size=30), max_size=3),
)
def test_any_text_is_read_or_refused(file: Callable[[str], Path], text: str, overrides: list[str]) -> None:
    for source in (file(text), text, "demo"):
        try:
            assert isinstance(load_config(source, overrides).config, Config)
        except InputErrors as error:
            check(error)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"seed": 10**5000}, "seed: is a number of more than 4300 digits"),
        ({"lora": {"alpha": Fraction(10**500)}}, "lora.alpha: must be a finite number, not inf"),
        ({"data": "a\0"}, "data: has a NUL character (\\0) in it, which no path may have"),
        ({"output_dir": f"runs/{'é' * 150}"},
         "output_dir: has a name of 300 bytes in it; file systems take at most 255"),
        ({"name": "x" * 300}, "name: has a name of 300 bytes in it; file systems take at most 255"),
        ({"tasks": [{"name": "a", "train": "~no-such-user/a", "test": "b"}]},
         "tasks.0.train: there is no user 'no-such-user'; write ./~no-such-user/a if ~ is part of the name"),
        ({"tasks": ["x" * 300]}, "tasks.0: the task's folder has its name, which has a name of 304 bytes in it;"),
    ],
)  # fmt: skip
def test_what_no_file_can_hold_is_refused(values: dict[str, Any], expected: str) -> None:
    with pytest.raises(InputErrors) as caught:
        load_config({"tasks": ["a"], **values})
    (problem,) = caught.value.problems
    assert str(problem).startswith(f"config: {expected}")


def test_a_source_that_can_be_no_file_is_no_file() -> None:
    with pytest.raises(InputErrors, match="no such file, and no recipe of that name"):
        load_config("x" * 300)


def test_a_run_whose_record_of_folders_is_damaged_is_refused(file: Callable[[str], Path]) -> None:
    text = 'config: {tasks: [a], output_dir: x}\nversions: {}\nbase_folder: "a\\0"\n'
    with pytest.raises(InputErrors, match=r"my\.yaml:3: base_folder: has a NUL character"):
        load_config(file(text))


def test_a_number_that_cannot_be_written_back_is_refused(file: Callable[[str], Path]) -> None:
    for number in (f"0x{'f' * 8000}", "7" * 5000):
        with pytest.raises(InputErrors, match=r"my\.yaml:2: not YAML: a number of more than 4300 digits"):
            load_config(file(f"tasks: [a]\ntrain: {{logging_steps: {number}}}"))


@given(st.text())
def test_a_printable_text_is_one_line_and_says_what_was_there(text: str) -> None:
    shown = printable(text)
    assert len(shown.splitlines()) <= 1
    shown.encode()
    assert (shown == text) == (printable(shown) == text)


@given(path=st.text(max_size=300))
def test_a_path_without_a_problem_can_be_looked_for(
    tmp_path_factory: pytest.TempPathFactory, path: str
) -> None:
    if path_problem(path) is None and path.isprintable():
        assert not (tmp_path_factory.getbasetemp() / f"none-{path}").exists()
