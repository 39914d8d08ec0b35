"""Packed files, patterns of files, and folders saved by `datasets`: the same examples as from plain files."""

from __future__ import annotations

import gzip
import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nlora.data.files import read_examples
from nlora.data.readers import FORMATS
from nlora.data.task import Example
from nlora.data.texts import read_texts
from nlora.errors import MissingExtraError

ROWS = [{"text": f"text {i}", "label": "ab"[i % 2]} for i in range(6)]
EXPECTED = tuple(Example(str(i), row["text"], row["label"]) for i, row in enumerate(ROWS))


def content(suffix: str, rows: list[dict[str, str]]) -> bytes:
    if suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

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
