"""Packed files, patterns of files, and folders saved by `datasets`: the same examples as from plain files."""

from __future__ import annotations

import gzip
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from nlora.data.fields import Fields
from nlora.data.files import read_examples
from nlora.data.readers import FORMATS
from nlora.data.task import Example
from nlora.data.texts import read_texts
from nlora.errors import MissingExtraError

ROWS = [{"text": f"text {i}", "label": "ab"[i % 2]} for i in range(6)]
EXPECTED = tuple(Example(str(i), row["text"], row["label"]) for i, row in enumerate(ROWS))


def content(suffix: str, rows: list[dict[str, str]]) -> bytes:
    if suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file := io.BytesIO())
        return file.getvalue()
    if suffix == ".json":
        return json.dumps(rows).encode()
    if suffix in {".csv", ".tsv"}:
        mark = {".csv": ",", ".tsv": "\t"}[suffix]
        return "".join(mark.join(cells) + "\n" for cells in [rows[0], *(r.values() for r in rows)]).encode()
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_packed_file_of_every_format(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"d{suffix}.gz"
    path.write_bytes(gzip.compress(content(suffix, ROWS)))
    assert read_examples(str(path), labels=("a", "b")) == (EXPECTED, [])
    assert [row["text"] for row in read_texts(path, io.BytesIO())] == [row["text"] for row in ROWS]
    path.write_bytes(gzip.compress(content(suffix, ROWS))[:-10])
    _, (problem,) = read_examples(str(path), labels=None)
    assert str(problem).startswith(f"{path}: cannot be read (not a complete gzip file: ")


def test_a_mistake_in_a_packed_file_has_its_line(tmp_path: Path) -> None:
    path = tmp_path / "d.csv.gz"
    path.write_bytes(gzip.compress(b"text,label\nx,a\ny,c\n"))
    _, (problem,) = read_examples(str(path), labels=("a", "b"))
    assert str(problem).startswith(f"{path}:3: label 'c' is not one of the task's labels")


def test_a_pattern_reads_its_files_in_sorted_order(tmp_path: Path) -> None:
    (tmp_path / "[1]" / "more").mkdir(parents=True)
    for name, rows in (("b.csv", ROWS[2:4]), ("a.csv", ROWS[:2]), ("more/c.csv", ROWS[4:])):
        (tmp_path / "[1]" / name).write_bytes(content(".csv", rows))
    folders = (tmp_path / "none", tmp_path / "[1]")
    assert read_examples("*.csv", labels=None, folders=folders) == (EXPECTED[:4], [])
    assert read_examples("**/?.csv", labels=None, folders=folders) == (EXPECTED, [])
    assert read_examples(f"{tmp_path}/[[]1]/*.csv", labels=None)[0] == EXPECTED[:4]
    _, (problem,) = read_examples("*.tsv", labels=None, folders=folders[1:], key=("tasks", 0, "train"))
    assert str(problem) == f"tasks.0.train: no file matches *.tsv (looked in {tmp_path}/[1])"


def test_each_mistake_names_the_file_of_the_pattern(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\nx,c\n")
    (tmp_path / "b.jsonl").write_text('{"text": "x", "label": "a"}\n{"text": 1, "label": "a"}\n')
    (tmp_path / "c.md").write_text("")
    _, problems = read_examples(str(tmp_path / "*"), labels=("a", "b"))
    assert [str(problem).replace(f"{tmp_path}/", "").split(";")[0] for problem in problems] == [
        "a.csv:2: label 'c' is not one of the task's labels: a, b",
        "b.jsonl:2: text is the number 1 instead of text",
        "c.md: c.md has an unknown format '.md'",
    ]


def test_a_name_with_brackets_is_that_file(tmp_path: Path) -> None:
    (tmp_path / "d[1].csv").write_bytes(content(".csv", ROWS))
    assert read_examples(str(tmp_path / "d[1].csv"), labels=None) == (EXPECTED, [])


class Table:
    """The part of datasets.Dataset that is used."""

    column_names = ("text", "label")
    features = {"text": SimpleNamespace(), "label": SimpleNamespace(names=["a", "b"])}  # noqa: RUF012

    def __iter__(self) -> Any:
        return iter({**row, "label": "ab".index(row["label"])} for row in ROWS)

    def select_columns(self, names: list[str]) -> Table:
        assert names == ["text", "label"]
        return self


def test_a_saved_folder_of_one_split_or_of_several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tables = {"one": Table(), "several": {"train": Table()}}
    for name, marker in (("one", "state.json"), ("several", "dataset_dict.json")):
        (tmp_path / name).mkdir()
        (tmp_path / name / marker).write_text("{}")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match="datasets is not installed"):
        read_examples("one", labels=None, folders=(tmp_path,))
    fake = SimpleNamespace(load_from_disk=lambda path: tables[Path(path).name])
    monkeypatch.setitem(sys.modules, "datasets", fake)
    for name in tables:
        assert read_examples(name, labels=None, folders=(tmp_path,)) == (EXPECTED, [])
    _, (problem,) = read_examples("several", labels=None, folders=(tmp_path,), split="test")
    assert str(problem) == f"{tmp_path}/several: has no split 'test'; name one of its splits: several/train"


@pytest.mark.filterwarnings("ignore")  # of dill, which datasets uses
def test_a_folder_that_datasets_itself_has_saved(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(text=datasets.Value("string"), label=datasets.ClassLabel(names=["a", "b"]))
    table = datasets.Dataset.from_list([{**row, "label": "ab".index(row["label"])} for row in ROWS], features)
    table.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict(train=table).save_to_disk(str(tmp_path / "several"))
    for source in ("one", "several", "several/train"):
        assert read_examples(source, labels=("a", "b"), folders=(tmp_path,)) == (EXPECTED, [])
    next((tmp_path / "one").glob("*.arrow")).unlink()
    _, (problem,) = read_examples("one", labels=None, folders=(tmp_path,))
    assert str(problem).startswith(f"{tmp_path}/one: the folder could not be loaded by datasets: ")


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., tuple[Any, Any]]:
    """saved(columns, types, **fields) -> what is read of the folder that datasets writes of them."""
    datasets = pytest.importorskip("datasets")

    def read(columns: dict[str, Any], types: Any = None, **fields: Any) -> tuple[Any, Any]:
        table = datasets.Dataset.from_dict(columns, features=types and datasets.Features(types(datasets)))
        table.save_to_disk(str(tmp_path / "saved"))
        return read_examples("saved", folders=(tmp_path,), **{"labels": None, **fields})

    return read


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("names", "words", "answers"),
    [
        (
            ["-1", "0", "1"],
            {"-1": "negative", "0": "neutral", "1": "positive"},
            ["negative", "neutral", "positive"],
        ),
        (["1", "2", "3"], {"1": "poor", "2": "fair", "3": "great"}, ["poor", "fair", "great"]),
        (["1", "2", "3"], {"0": "poor", "1": "fair", "2": "great"}, ["poor", "fair", "great"]),
        (["World", "Sports", "Tech"], {"World": "w", "Sports": "s", "Tech": "t"}, ["w", "s", "t"]),
        (["World", "Sports", "Tech"], {"0": "w", "1": "s", "2": "t"}, ["w", "s", "t"]),
        (["World", "Sports", "Tech"], None, ["World", "Sports", "Tech"]),
    ],
)
def test_label_names_go_by_the_names_or_by_the_numbers_of_all_classes(
    saved: Callable[..., Any], names: list[str], words: dict[str, str] | None, answers: list[str]
) -> None:
    """Never some by one and some by the other: class 1 may be called 0."""
    examples, problems = saved(
        {"text": ["a", "b", "c"], "label": [0, 1, 2]},
        lambda d: {"text": d.Value("string"), "label": d.ClassLabel(names=names)},
        fields=Fields(label_names=words),
    )
    assert problems == []
    assert [example.label for example in examples] == answers


@pytest.mark.filterwarnings("ignore")
def test_lists_of_class_numbers_become_names(saved: Callable[..., Any]) -> None:
    examples, problems = saved(
        {"text": ["a", "b"], "label": [[0, 1], [1]]},
        lambda d: {"text": d.Value("string"), "label": d.List(d.ClassLabel(names=["joy", "anger"]))},
    )
    assert problems == []
    assert [example.answers for example in examples] == [("joy", "anger"), ("anger",)]


@pytest.mark.filterwarnings("ignore")
def test_columns_that_nobody_reads_are_not_decoded(tmp_path: Path) -> None:
    """For a sound, datasets wants another package."""
    datasets = pytest.importorskip("datasets")
    columns = {"text": ["a"], "label": ["b"], "audio": [{"bytes": b"no sound", "path": None}]}
    table = datasets.Dataset.from_dict(columns).cast_column("audio", datasets.Audio())
    table.save_to_disk(str(tmp_path / "saved"))
    assert read_examples("saved", labels=None, folders=(tmp_path,)) == ((Example("0", "a", "b"),), [])


@pytest.mark.filterwarnings("ignore")
def test_numbers_of_32_bits_are_those_that_were_written(saved: Callable[..., Any], tmp_path: Path) -> None:
    columns = {"text": ["a", "b", "c"], "label": [3.8, 0.1, 5.0]}
    examples, _ = saved(columns, lambda d: {"text": d.Value("string"), "label": d.Value("float32")})
    assert [example.label for example in examples] == ["3.8", "0.1", "5"]
    types = pyarrow.schema([("text", pyarrow.string()), ("label", pyarrow.float32())])
    pyarrow.parquet.write_table(pyarrow.table(columns, types), tmp_path / "a.parquet")
    assert read_examples(str(tmp_path / "a.parquet"), labels=None) == (examples, [])


@pytest.mark.filterwarnings("ignore")
def test_so_are_those_in_lists(saved: Callable[..., Any], tmp_path: Path) -> None:
    columns = {"text": ["a", "b"], "label": [[3.8, 4.0], [0.1]]}
    examples, _ = saved(columns, lambda d: {"text": d.Value("string"), "label": d.List(d.Value("float32"))})
    assert [(example.label, *example.others) for example in examples] == [("3.8", "4"), ("0.1",)]
    types = pyarrow.schema([("text", pyarrow.string()), ("label", pyarrow.list_(pyarrow.float32()))])
    pyarrow.parquet.write_table(pyarrow.table(columns, types), tmp_path / "a.parquet")
    assert read_examples(str(tmp_path / "a.parquet"), labels=None) == (examples, [])


@pytest.mark.filterwarnings("ignore")
def test_a_data_set_that_cannot_be_built_is_told_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    (tmp_path / "set").mkdir()
    (tmp_path / "set/train-0.csv").write_text("text,label\na,b\n")
    (tmp_path / "set/train-1.csv").write_text("text,label,extra\na,b,c\n")
    monkeypatch.chdir(tmp_path)
    _, (problem,) = read_examples("hub:./set/train", labels=None)
    told = str(problem)
    assert told.startswith("hub:./set/train: the data set could not be loaded from the hub: ")
    assert "generating the dataset" not in told
    assert "\n" not in told
