"""The released folder layout: its data sets, the released ids, and all mistakes."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from nlora.data import cl_benchmark
from nlora.data.task import Task
from nlora.errors import InputErrors


@pytest.fixture(scope="module")
def folder(shared: Path) -> Path:
    return shared / "data" / "CL_Benchmark"


def write(folder: Path, place: str, **files: Any) -> Path:
    (folder / place).mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        text = value if isinstance(value, str) else json.dumps(value)
        (folder / place / f"{name}.json").write_text(text, encoding="utf-8")
    return folder


def good(folder: Path, place: str, **changed: Any) -> Path:
    rows = [{"sentence": "one", "label": "a"}, {"sentence": "two", "label": "b"}]
    return write(folder, place, **{"train": rows, "test": rows, "labels": ["a", "b"]} | changed)


def problems_of(folder: Path, name: str, **options: Any) -> list[str]:
    with pytest.raises(InputErrors) as caught:
        cl_benchmark.read(folder, name, **options)
    return [str(problem) for problem in caught.value.problems]


def test_finds_all_data_sets(folder: Path) -> None:
    expected = {f"{p.parent.name}/{p.name}" for p in folder.glob("*/*") if p.is_dir()}
    assert set(cl_benchmark.datasets(folder)) == expected
    assert len(expected) == 14


def test_ids_and_order_are_the_released_ones(folder: Path, shared: Path) -> None:
    lines = (shared / "golden/pipeline/nlora/1-agnews/predict_eval_predictions.head5.jsonl").read_text()
    released = [json.loads(line)["Instance"] for line in lines.splitlines()]
    task = cl_benchmark.read(folder, "agnews")
    for example, row in zip(task.test, released, strict=False):
        assert (example.id, example.sentence, example.label) == (row["id"], row["sentence"], row["label"])
    golden = json.loads((shared / "golden" / "prompts.json").read_text(encoding="utf-8"))
    by_id = {example.id: example for example in cl_benchmark.read(folder, "MultiRC").train}
    rows = golden["datasets"]["MultiRC/MultiRC"]["examples"]
    assert [by_id[row["id"]].sentence for row in rows] == [row["sentence"] for row in rows]


@pytest.mark.parametrize("name", ["agnews", "TC/agnews"])
def test_name_with_and_without_type(folder: Path, name: str) -> None:
    task = cl_benchmark.read(folder, name)
    assert (task.name, task.type) == ("agnews", "TC")
    assert task.labels == ("World", "Sports", "Business", "Science or Technology")
    assert (len(task.train), len(task.test)) == (1000, 400)


def test_test_examples_without_a_label_are_left_out_by_default(folder: Path) -> None:
    raw = json.loads((folder / "NLI/MNLI/test.json").read_text(encoding="utf-8"))
    unlabeled = Counter(row["label"] for row in raw)["-"]
    assert unlabeled > 0
    kept = cl_benchmark.read(folder, "MNLI", keep_unlabeled=True)
    dropped = cl_benchmark.read(folder, "MNLI")
    assert len(kept.test) == len(raw)
    assert len(dropped.test) == len(raw) - unlabeled
    # Ids remain row numbers, so that predictions match the released ones.
    assert all(raw[int(example.id)]["sentence"] == example.sentence for example in dropped.test)


def test_dev_is_never_read(tmp_path: Path) -> None:
    good(tmp_path, "TC/news", dev="this is no JSON")
    assert isinstance(cl_benchmark.read(tmp_path, "news"), Task)


def test_the_users_instruction_and_labels_replace_the_released_ones(tmp_path: Path) -> None:
    good(tmp_path, "Own/news")
    task = cl_benchmark.read(tmp_path, "news", instruction="Which?", labels=("b", "a"))
    assert (task.instruction, task.labels) == ("Which?", ("b", "a"))


def test_a_missing_data_set_lists_those_that_are_there(folder: Path) -> None:
    (problem,) = problems_of(folder, "agnew", key=("tasks", 1))
    assert problem.startswith(f"tasks.1: no data set 'agnew' in {folder}, which has BoolQA/BoolQA, ")
    assert problem.endswith("did you mean 'agnews'?")


def test_a_folder_of_another_layout(tmp_path: Path) -> None:
    (problem,) = problems_of(tmp_path, "agnews")
    assert "expected <type>/<dataset>/train.json" in problem


def test_a_name_in_two_types_needs_the_type(tmp_path: Path) -> None:
    good(tmp_path, "TC/news")
    good(tmp_path, "SC/news")
    (problem,) = problems_of(tmp_path, "news")
    assert "SC/news and TC/news are both called 'news'" in problem
    assert cl_benchmark.read(tmp_path, "news", type="SC").type == "SC"


def test_all_mistakes_of_a_data_set_are_reported_at_once(tmp_path: Path) -> None:
    train = [{"sentence": "x", "label": "A"}, {"sentence": " ", "label": "a"}, {"text": "x"}, 3]
    good(tmp_path, "Own/news", train=train, test="[1,\n2")
    found = problems_of(tmp_path, "news")
    place = tmp_path / "Own" / "news"
    assert found == [
        f"{place}: the release has no instruction for the type 'Own'; give the task one",
        f"{place}/train.json[0]: label 'A' is not one of the task's labels: a, b; did you mean 'a'?",
        f"{place}/train.json[1]: sentence is empty",
        f"{place}/train.json[2]: no field 'label' (or output); the fields are: text",
        f"{place}/train.json[3]: the number 3 instead of an object with the fields sentence and label",
        f"{place}/test.json:2: not JSON: Expecting ',' delimiter (column 2)",
    ]


def test_a_dash_is_no_label_in_training(tmp_path: Path) -> None:
    good(tmp_path, "TC/news", train=[{"sentence": "x", "label": "-"}])
    (problem,) = problems_of(tmp_path, "news")
    assert "label '-' is not one of the task's labels" in problem


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ('{"a": 1}', "labels.json: expected a list of label words"),
        ("[1, 2]", "labels.json: expected a list of label words"),
        (f"[{'7' * 5000}]", "labels.json: a number of more than 4300 digits"),
        ("[" * 100_000, "labels.json: lists or objects nested too deeply"),
        ('["a", "b\\ud83d"]', "labels.json: label 'b\\ud83d' holds \\ud83d, which is half of a character"),
    ],
)
def test_labels_file_of_another_form(tmp_path: Path, labels: str, said: str) -> None:
    good(tmp_path, "TC/news", labels=labels)
    assert said in problems_of(tmp_path, "news")[0]


def test_missing_labels_file_and_wrong_encoding(tmp_path: Path) -> None:
    good(tmp_path, "TC/news")
    (tmp_path / "TC/news/labels.json").unlink()
    (tmp_path / "TC/news/test.json").write_bytes('[{"sentence": "é"}]'.encode("latin-1"))
    first, second = problems_of(tmp_path, "news")
    assert first.endswith("labels.json: no such file")
    assert second.endswith("test.json:1: not UTF-8 (byte 0xe9); save the file as UTF-8")
    (tmp_path / "TC/news/test.json").unlink()
    assert problems_of(tmp_path, "news")[1] == f"{tmp_path}/TC/news/test.json: no such file"


def test_a_row_that_python_cannot_parse_is_named(tmp_path: Path) -> None:
    good(tmp_path, "TC/news", train='[{"sentence": "x \\ud83d", "label": "a"}]', test="[" * 100_000)
    place = tmp_path / "TC" / "news"
    assert problems_of(tmp_path, "news") == [
        f"{place}/train.json[0]: sentence holds \\ud83d, which is half of a character; "
        "correct the text, or leave the character out",
        f"{place}/test.json: lists or objects nested too deeply to be read",
    ]
