"""A configuration becomes its tasks, or one list of all their mistakes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from nlora.config.schema import Config
from nlora.data import builtin
from nlora.data.load import load_tasks
from nlora.data.task import Example, Task
from nlora.errors import InputErrors
from released_data import write_benchmark


def rows(n: int, labels: tuple[str, ...] = ("a", "b")) -> list[dict[str, str]]:
    return [{"sentence": f"text {i}", "label": labels[i % len(labels)]} for i in range(n)]


def write(path: Path, records: list[dict[str, str]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return str(path)


def config(tasks: list[Any], **values: Any) -> Config:
    return Config.model_validate({"tasks": tasks, **values})


@pytest.fixture
def own(tmp_path: Path) -> dict[str, Any]:
    return {
        "name": "tickets",
        "train": write(tmp_path / "train.jsonl", rows(40)),
        "test": write(tmp_path / "test.jsonl", rows(10)),
        "labels": ["a", "b"],
    }


def problems_of(config: Config, **options: Any) -> list[str]:
    with pytest.raises(InputErrors) as caught:
        load_tasks(config, **options)
    return [str(problem) for problem in caught.value.problems]


def test_benchmark_and_own_files_in_the_order_of_learning(shared: Path, own: dict[str, Any]) -> None:
    own["instruction"] = "Which team?\n"
    folder = str(shared / "data" / "CL_Benchmark")
    first, second, third = load_tasks(config(["COPA", own, "agnews"], data=folder))
    assert (first.name, first.type, first.options_in_prompt) == ("COPA", "COPA", False)
    assert (second.name, second.type, second.instruction) == ("tickets", "tickets", "Which team?")
    assert second.test[3] == Example("3", "text 3", "b")
    assert (third.name, len(third.train)) == ("agnews", 1000)


def test_a_source_may_override_the_benchmarks_instruction(shared: Path) -> None:
    folder = str(shared / "data" / "CL_Benchmark")
    labels = ["Sports", "World", "Business", "Science or Technology"]
    (task,) = load_tasks(config([{"name": "agnews", "instruction": "Topic?", "labels": labels}], data=folder))
    assert (task.instruction, task.labels) == ("Topic?", tuple(labels))


def test_paths_are_relative_to_the_current_folder_then_to_the_configurations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, here = tmp_path / "there", tmp_path / "here"
    write(there / "train.jsonl", rows(4))
    write(there / "test.jsonl", rows(2))
    write(here / "test.jsonl", rows(3))
    monkeypatch.chdir(here)
    source = {"name": "t", "train": "train.jsonl", "test": "test.jsonl", "labels": ["a", "b"]}
    (task,) = load_tasks(config([source]), base_folder=there)
    assert (len(task.train), len(task.test)) == (4, 3)


def test_all_problems_of_all_tasks_at_once(tmp_path: Path, own: dict[str, Any], shared: Path) -> None:
    bad = write(tmp_path / "bad.jsonl", [*rows(2), {"sentence": "x", "label": "c"}])
    tasks = [
        {**own, "labels": ["a"]},
        {**own, "name": "second", "train": bad},
        "agnew",
        {**own, "name": "third", "test": "nowhere.jsonl", "labels": ["a", "b", "A"]},
    ]
    folder = shared / "data" / "CL_Benchmark"
    found = problems_of(config(tasks, data=str(folder)))
    expected = [
        "tasks.0.labels: 1 labels; a choice needs two, and free text has no 'labels'",
        f"{own['train']}:2: label 'b' is not one of the task's labels: a",
        f"{bad}:3: label 'c' is not one of the task's labels: a, b",
        f"tasks.2: no data set 'agnew' in {folder}, which has ",
        "tasks.3.labels: duplicate label 'A' (scoring ignores case)",
        "tasks.3.test: no such file: nowhere.jsonl (looked in ",
    ]
    for line in expected:
        assert any(problem.startswith(line) for problem in found), line


def test_labels_that_are_empty_or_have_spaces_around_them(own: dict[str, Any]) -> None:
    found = problems_of(config([{**own, "labels": ["a", "b", "", " c"]}]))
    assert found == [
        "tasks.0.labels: label '' is empty",
        "tasks.0.labels: label ' c' begins or ends with a space",
    ]


def test_labels_that_only_look_different_or_only_look_alike(own: dict[str, Any]) -> None:
    found = problems_of(config([{**own, "labels": ["a", "b", "b", "caf\u00e9", "cafe\u0301", "A\u200b"]}]))
    assert found == [
        "tasks.0.labels: duplicate label 'b' (scoring ignores case)",
        "tasks.0.labels: label 'cafe\u0301' only looks like 'caf\u00e9': it has U+0065 (latin small letter e) "
        "U+0301 (combining acute accent) where the other has U+00E9 (latin small letter e with acute); "
        "keep one of them",
        "tasks.0.labels: label 'A\u200b' only looks like 'a': it has U+0041 (latin capital letter a) "
        "U+200B (zero width space) where the other has U+0061 (latin small letter a); keep one of them",
    ]


def test_training_examples_are_not_test_examples(tmp_path: Path, own: dict[str, Any]) -> None:
    """The same file, a copy, another format or order: a score on them would measure memorization."""
    copy = write(tmp_path / "copy.jsonl", rows(40)[::-1])
    table = tmp_path / "copy.csv"
    table.write_text("text,label\n" + "".join(f"{r['sentence']},{r['label']}\n" for r in rows(40)))
    for test in (own["train"], copy, str(table)):
        (problem,) = problems_of(config([{**own, "test": test}], train={"max_samples": 7}))
        assert problem == (
            "tasks.0.test: the test examples of task 'tickets' are its training examples, so its score would mean "
            "nothing; use others, or hold some out with test_share"
        )
    held = config([{**own, "test": own["train"]}], evaluate={"split": "validation"})
    assert not set(load_tasks(held)[0].train) & set(load_tasks(held)[0].test)
    assert len(load_tasks(config([{**own, "test": write(tmp_path / "part.jsonl", rows(39))}]))) == 1


def test_training_files_are_not_read_if_nothing_is_trained(own: dict[str, Any]) -> None:
    Path(own["train"]).unlink()
    (task,) = load_tasks(config([own]), test_only=True)
    assert (len(task.train), len(task.test)) == (0, 10)
    (problem,) = problems_of(config([own], evaluate={"split": "validation"}), test_only=True)
    assert problem.startswith("tasks.0.train: no such file")


def test_missing_data_sets_name_their_folder_and_what_would_remain(
    tmp_path: Path, own: dict[str, Any]
) -> None:
    folder = write_benchmark(tmp_path / "CL", leave_out=("yahoo", "CB"))
    tasks: list[Any] = ["agnews", "yahoo", "CB", "MNLI"]
    files = "train.json, test.json and labels.json"
    assert problems_of(config(tasks, data=str(folder))) == [
        f"tasks.{i}: no data set '{name}' in {folder}; expected {folder}/{place} with {files} "
        "(or leave it out: 'tasks=[agnews, MNLI]')"
        for i, name, place in ((1, "yahoo", "TC/yahoo"), (2, "CB", "NLI/CB"))
    ]
    assert [t.name for t in load_tasks(config(["agnews", "MNLI"], data=str(folder)))] == ["agnews", "MNLI"]
    # Tasks with more fields than a name are only named, as an override would drop the fields. A typo gets a hint, too.
    (problem,) = problems_of(config([own, "agnew"], data=str(folder)))
    assert problem.endswith("did you mean 'agnews'? (or leave it out; tickets would remain)")
    (problem,) = problems_of(config(["yahoo"], data=str(folder)))
    assert problem.endswith(files)


def test_a_missing_data_folder_is_reported_once(tmp_path: Path, own: dict[str, Any]) -> None:
    (problem,) = problems_of(config(["agnews", own, "amazon"], data=str(tmp_path / "nowhere")))
    assert problem.startswith(
        f"data: no such folder: {tmp_path}/nowhere; use a folder in the released layout"
    )
    assert problem.endswith(
        "CL_Benchmark of github.com/cmnfriend/O-LoRA (for superni, that of github.com/circle-hit/SAPT)"
    )
    (problem,) = problems_of(config([own, "agnews"]))
    assert problem.startswith(
        "tasks.1: 'agnews' has no 'train' and 'test' files, and 'data' names no benchmark"
    )


def test_validation_has_no_test_example(own: dict[str, Any]) -> None:
    whole = load_tasks(config([own]))[0]
    held = load_tasks(config([own], evaluate={"split": "validation", "validation_share": 0.25}))[0]
    assert set(held.train) | set(held.test) == set(whole.train)
    assert (len(held.train), len(held.test)) == (30, 10)
    assert Counter(e.label for e in held.test) == {"a": 5, "b": 5}


def test_max_samples_for_one_task_and_for_all(own: dict[str, Any]) -> None:
    settings: dict[str, Any] = {
        "train": {"max_samples": 8},
        "evaluate": {"max_samples": 4},
        "stages": {"other": {"train": {"max_samples": 12}}},
    }
    first, other = load_tasks(config([own, {**own, "name": "other"}], **settings))
    assert (len(first.train), len(first.test)) == (8, 4)
    assert (len(other.train), len(other.test)) == (12, 4)


def test_samples_depend_on_the_seed_and_not_on_the_position(own: dict[str, Any]) -> None:
    other = {**own, "name": "other"}
    limits: dict[str, Any] = {"train": {"max_samples": 10}}
    forward = {t.name: t for t in load_tasks(config([own, other], **limits))}
    backward = {t.name: t for t in load_tasks(config([other, own], **limits))}
    assert forward == backward
    assert forward["tickets"].train != forward["other"].train
    assert load_tasks(config([own], seed=1, **limits))[0].train != forward["tickets"].train


def test_builtin_tasks_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    task = Task("reuters", "TC", "Topic?", ("a", "b"), (Example("0", "x", "a"),), (Example("1", "y", "b"),))

    def read(name: str, key: str = "") -> Task:
        assert (name, key) == ("reuters", ("tasks", 0))
        return task

    monkeypatch.setattr(builtin, "read", read)
    assert load_tasks(config(["reuters"], data="builtin")) == [task]
    (changed,) = load_tasks(config([{"name": "reuters", "instruction": "Which?"}], data="builtin"))
    assert changed.instruction == "Which?"
    found = problems_of(config([{"name": "reuters", "labels": ["x", "y"]}], data="builtin"))
    assert found == ["tasks.0.labels: the built-in tasks have fixed labels; leave it out"]


@pytest.mark.parametrize("data", ["embedded", "built-in", "Builtin"])
def test_other_words_for_the_builtin_tasks_are_corrected(data: str) -> None:
    (problem,) = problems_of(config(["reuters"], data=data))
    assert problem == f"data: no such folder: {data} (looked in {Path.cwd()}); did you mean 'builtin'?"


def test_an_unknown_builtin_task_lists_the_known_ones() -> None:
    (problem,) = problems_of(config(["reuter"], data="builtin"))
    assert problem.startswith(f"tasks.0: no built-in task 'reuter'; there are {', '.join(builtin.names())}")
    assert problem.endswith("did you mean 'reuters'?")


def test_importing_the_package_is_cheap() -> None:
    heavy = "('torch', 'transformers', 'pyarrow', 'datasets')"
    code = f"import sys, nlora.data; print(*[m for m in {heavy} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""


def test_one_file_for_train_and_test(tmp_path: Path, own: dict[str, Any]) -> None:
    one = {key: value for key, value in own.items() if key != "test"} | {"test_share": 0.25}
    (task,) = load_tasks(config([one]))
    assert (len(task.train), len(task.test)) == (30, 10)
    assert Counter(e.label for e in task.test) == {"a": 5, "b": 5}
    assert not {e.sentence for e in task.train} & {e.sentence for e in task.test}
    assert load_tasks(config([{**one, "name": "other"}], seed=7))[0].test == task.test
    assert load_tasks(config([one]), test_only=True)[0].test == task.test
    (held_out,) = load_tasks(config([one], evaluate={"split": "validation"}))
    assert {*held_out.train, *held_out.test} == set(task.train)


def test_one_file_with_too_few_texts(tmp_path: Path, own: dict[str, Any]) -> None:
    train = write(tmp_path / "few.jsonl", rows(2) * 5)
    one = {"name": "few", "train": train, "test_share": 0.5, "labels": ["a", "b"]}
    what = "task 'few' has only 2 different texts, too few to split; use a 'test' file"
    assert problems_of(config([own, one])) == [f"tasks.1.test_share: {what}"]
