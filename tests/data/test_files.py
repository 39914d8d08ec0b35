"""User files: every format gives the same examples, and every mistake has its file and line."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nlora.data.files import read_examples
from nlora.data.readers import FORMATS
from nlora.data.task import Example

LABELS = ("billing", "network")
ROWS = [("My invoice, 2 pages,\nis wrong", "billing"), ('The "router" is down\u2028again', "network")]
EXPECTED = tuple(Example(str(i), text, label) for i, (text, label) in enumerate(ROWS))


def write(
    path: Path, rows: list[tuple[str, str]], text_field: str = "sentence", label_field: str = "label"
) -> Path:
    records = [{text_field: text, label_field: label} for text, label in rows]
    if path.suffix in {".jsonl", ".ndjson"}:
        path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(records, indent=2), encoding="utf-8")
    elif path.suffix in {".csv", ".tsv"}:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(
                file, [text_field, label_field], delimiter="\t" if path.suffix == ".tsv" else ","
            )
            writer.writeheader()
            writer.writerows(records)
    else:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), path)
    return path


def problems_of(path: Path, labels: tuple[str, ...] | None = LABELS) -> list[str]:
    return [
        str(problem).replace(f"{path}", path.name) for problem in read_examples(str(path), labels=labels)[1]
    ]


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("fields", [("sentence", "label"), ("input", "output"), ("text", "label")])
def test_every_format_gives_the_same_examples(tmp_path: Path, suffix: str, fields: tuple[str, str]) -> None:
    path = write(tmp_path / f"data{suffix}", ROWS, *fields)
    assert read_examples(str(path), labels=LABELS, quoting=True) == (EXPECTED, [])


TEXT = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\x00\r"), min_size=1).filter(
    str.strip
)


@given(rows=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=5))
@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".tsv"])
def test_whatever_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, rows: list[tuple[str, str]]
) -> None:
    path = write(tmp_path_factory.mktemp("rows") / f"data{suffix}", rows)
    examples, problems = read_examples(str(path), labels=None, quoting=True)
    assert [(e.sentence, e.label) for e in examples] == rows
    assert problems == []


CELL = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\x00\r\n\t"), min_size=1).filter(
    str.strip
)


@given(rows=st.lists(st.tuples(CELL, CELL), min_size=1, max_size=5))
def test_a_tsv_cell_is_everything_between_two_tabs(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]
) -> None:
    path = tmp_path_factory.mktemp("rows") / "data.tsv"
    path.write_bytes("".join(f"{a}\t{b}\n" for a, b in [("sentence", "label"), *rows]).encode())
    examples, problems = read_examples(str(path), labels=None)
    assert [(e.sentence, e.label) for e in examples] == rows
    assert problems == []


def test_quotes_in_a_tsv_file_are_characters_unless_the_task_sets_quoting(tmp_path: Path) -> None:
    path = tmp_path / "data.tsv"
    path.write_text('sentence\tlabel\n"Good movie\tpos\nterrible film"\tneg\nfine\tpos\n')
    examples, problems = read_examples(str(path), labels=("pos", "neg"))
    assert problems == []
    assert [(e.sentence, e.label) for e in examples] == [
        ('"Good movie', "pos"),
        ('terrible film"', "neg"),
        ("fine", "pos"),
    ]
    path.write_text('sentence\tlabel\n"He said ""no"",\ntwice"\tneg\n')
    (example,), problems = read_examples(str(path), labels=("pos", "neg"), quoting=True)
    assert (example.sentence, problems) == ('He said "no",\ntwice', [])
    _, (first,) = read_examples(str(path), labels=("pos", "neg"))
    assert str(first) == f"{path}:2: 1 cells, but the header has 2; if cells are quoted, set quoting: true"
    path.write_text('"sentence"\t"label"\n"fine"\t"pos"\n')
    _, (problem,) = read_examples(str(path), labels=("pos", "neg"))
    assert str(problem).endswith("if cells are quoted, set quoting: true")
    csv_file = tmp_path / "data.csv"
    csv_file.write_text('sentence,label\n"fine",pos\n')
    (example,), _ = read_examples(str(csv_file), labels=None, quoting=False)
    assert example.sentence == '"fine"'


def test_windows_line_ends_byte_order_mark_and_empty_lines(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_bytes("\ufefflabel,sentence,note\r\nbilling,Too much,x\r\n\r\nnetwork,Down,y\r\n".encode())
    examples, problems = read_examples(str(path), labels=LABELS)
    assert problems == []
    assert examples == (Example("0", "Too much", "billing"), Example("1", "Down", "network"))


def test_parquet_with_class_numbers_and_without_a_label_column(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "d.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"text": "x", "label": 1}]), path)
    assert problems_of(path)[0].startswith("d.parquet[0]: label '1' is not one of the task's labels")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"text": "x", "topic": "billing"}]), path)
    assert problems_of(path) == [
        "d.parquet: no field 'label' (or output); the fields are: text, topic; "
        "the task can name another: columns: {label: ...}"
    ]


def test_a_missing_file_says_where_it_was_looked_for(tmp_path: Path) -> None:
    folders = (tmp_path / "here", tmp_path / "there")
    _, (problem,) = read_examples("a.jsonl", labels=None, folders=folders, key=("tasks", 2, "train"))
    looked = f"looked in {tmp_path}/here and {tmp_path}/there"
    assert str(problem) == f"tasks.2.train: no such file: a.jsonl ({looked})"


def test_the_first_folder_that_has_the_file_counts(tmp_path: Path) -> None:
    for name, text in (("here", "from here"), ("there", "from there")):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "a.jsonl", [(text, "x")])
    folders = (tmp_path / "here", tmp_path / "there")
    assert read_examples("a.jsonl", labels=None, folders=folders)[0][0].sentence == "from here"
    (tmp_path / "here" / "a.jsonl").unlink()
    assert read_examples("a.jsonl", labels=None, folders=folders)[0][0].sentence == "from there"


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_a_cell_may_have_any_length(tmp_path: Path, suffix: str) -> None:
    before = csv.field_size_limit()
    long = "word " * 40_000 + "end"
    path = write(tmp_path / f"d{suffix}", [(long, "billing")])
    (example,), problems = read_examples(str(path), labels=LABELS)
    assert (example.sentence, problems) == (long, [])
    assert csv.field_size_limit() == before


def test_a_folder_is_not_a_file(tmp_path: Path) -> None:
    (tmp_path / "tickets").mkdir()
    _, (problem,) = read_examples("tickets", labels=None, folders=(tmp_path,), key=("tasks", 0, "train"))
    assert (
        str(problem) == "tasks.0.train: tickets is a folder; name a file in it, or several as tickets/*.jsonl"
    )
