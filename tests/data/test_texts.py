"""New texts to answer: how their format is recognized, which fields are kept, and messages for wrong input."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from nlora.data.rows import ProblemList, to_texts
from nlora.data.texts import read_texts
from nlora.errors import InputErrors

NOTHING = io.BytesIO()


def piped(text: str, **options: Any) -> list[dict[str, Any]]:
    return list(read_texts(None, io.BytesIO(text.encode()), **options))


def problems_of(*arguments: Any, **options: Any) -> list[str]:
    with pytest.raises(InputErrors) as told:
        read_texts(*arguments, **options)
    return [str(problem) for problem in told.value.problems]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("\n \n", []),
        ("It is down\r\n\n  again  \n", [{"sentence": "It is down"}, {"sentence": "again"}]),
        ("{name} is down\n[urgent] help\n", [{"sentence": "{name} is down"}, {"sentence": "[urgent] help"}]),
        ("the text, of mine", [{"sentence": "the text, of mine"}]),
        ('\ufeff{"text": "a", "n": 1}\n{"input": "b"}\n', [{"text": "a", "n": 1}, {"input": "b"}]),
        ('[\n  {"text": "a"},\n  {"text": "b"}\n]\n', [{"text": "a"}, {"text": "b"}]),
        ('[{"text": "a"}]', [{"text": "a"}]),
    ],
)
def test_standard_input_is_json_if_it_begins_like_json_and_otherwise_text(
    text: str, expected: list[dict[str, Any]]
) -> None:
    assert piped(text) == expected


def test_an_explicit_format_overrides(tmp_path: Path) -> None:
    line = '{"sentence": "a"}'
    assert piped(line, kind="text") == [{"sentence": line}]
    assert piped('sentence,label\n"a, b",x\n', kind="csv") == [{"sentence": "a, b", "label": "x"}]
    assert piped('sentence\n"a"\n', kind="csv", quoting=False) == [{"sentence": '"a"'}]
    file = tmp_path / "texts.csv"
    file.write_text("sentence\nfine\n")
    assert list(read_texts(file, NOTHING)) == [{"sentence": "fine"}]
    assert list(read_texts(file, NOTHING, kind="text")) == [{"sentence": "sentence"}, {"sentence": "fine"}]
    assert problems_of(file, NOTHING, kind="jsn") == [
        "--format: must be one of text, jsonl, json, csv, tsv, parquet, not 'jsn'; did you mean 'json'?"
    ]


@pytest.mark.parametrize("header", ["sentence,label", "id\tsentence\tlabel", '"text"', "label;text"])
def test_the_header_of_a_table_is_refused(header: str) -> None:
    (problem,) = problems_of(None, io.BytesIO(f"\n{header}\nfine,good\n".encode()))
    assert problem == (
        f"standard input: '{header}' looks like the header of a table; "
        "use --format csv or tsv, or --format text for plain text"
    )
    assert piped(f"{header}\n", kind="text") == [{"sentence": header}]


def test_rows_without_a_text_are_named_with_their_line(tmp_path: Path) -> None:
    file = tmp_path / "texts.jsonl"
    rows = ['{"sentence": "a"}', '{"label": "b"}', "", '{"text"', '"bare"', "[1]", '{"text": ""}']
    file.write_text("\n".join(rows))
    assert [p.removeprefix(f"{file}:") for p in problems_of(file, NOTHING)] == [
        "2: no field 'sentence' (or input or text); the fields are: label",
        "4: not JSON: Expecting ':' delimiter (column 8)",
        "6: a list instead of a text or an object with the field sentence",
        "7: text is empty",
    ]
    file.write_text('"bare"\n')
    assert list(read_texts(file, NOTHING)) == [{"sentence": "bare"}]


def test_a_wrongly_recognized_format_says_what_to_do() -> None:
    first, second = problems_of(None, io.BytesIO(b'{"a": "b"}'))
    assert first == "standard input:1: no field 'sentence' (or input or text); the fields are: a"
    assert second.startswith(
        "--format: standard input begins like JSON and was read as JSON; use --format text"
    )


def test_a_field_that_the_answers_have_is_no_matter_of_the_format() -> None:
    """Plain text would be the wrong way out: the output of `nlora predict` was given to it again."""
    given = io.BytesIO(b'{"sentence": "a", "prediction": "b"}')
    with pytest.raises(InputErrors) as caught:
        read_texts(None, given, added=["prediction"])
    (problem,) = caught.value.problems
    assert "prediction" in problem.what


@pytest.mark.parametrize("field", ["sentence", "note", "\\ud83d"])
def test_half_of_a_character_is_reported_before_anything_is_answered(field: str) -> None:
    values = '"b \\ud83d"' if field == "sentence" else f'"a", "{field}": "b \\ud83d"'
    row = f'{{"sentence": {values}}}'
    (problem, _) = problems_of(None, io.BytesIO(row.encode()))
    assert problem.startswith("standard input:1: ")
    assert "holds \\ud83d, which is half of a character" in problem


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert problems_of(Path("gone.jsonl"), NOTHING) == ["--file: no such file: gone.jsonl"]
    (folder := tmp_path / "folder.csv").mkdir()
    assert problems_of(folder, NOTHING) == [f"--file: {folder} is a folder; name a file in it"]
    (unknown := tmp_path / "texts.dat").write_text("x")
    assert problems_of(unknown, NOTHING) == [
        "--file: texts.dat has an unknown format '.dat'; known: .jsonl, .ndjson, .json, .csv, .tsv, .parquet, .txt; "
        "or give its format with --format"
    ]
    (packed := tmp_path / "texts.txt.xz").write_text("x")
    assert problems_of(packed, NOTHING) == [
        f"--file: texts.txt.xz is compressed, which is not supported; unpack it first: unxz {packed}"
    ]
    (latin := tmp_path / "texts.txt").write_bytes("fine\ncafé\n".encode("latin-1"))
    assert problems_of(latin, NOTHING) == [f"{latin}:2: not UTF-8 (byte 0xe9); save the file as UTF-8"]


def test_a_field_that_the_answer_would_replace_is_refused_with_its_line(tmp_path: Path) -> None:
    (file := tmp_path / "t.jsonl").write_text('{"text": "a"}\n{"text": "b", "prediction": "old"}\n')
    assert problems_of(file, NOTHING, added=["prediction", "probabilities"]) == [
        f"{file}:2: has a field prediction already, which the answer would replace; rename it"
    ]
    assert len(read_texts(file, NOTHING)) == 2


def test_numbers_that_json_does_not_have_become_null() -> None:
    from nlora.data.rows import as_line

    (row,) = read_texts(None, io.BytesIO(b'{"text": "a", "n": [NaN, {"m": -Infinity}], "k": 1.5}'))
    assert as_line(row) == '{"text": "a", "n": [null, {"m": null}], "k": 1.5}'


def test_utf16_on_standard_input_is_named() -> None:
    for encoding in ("utf-16", "utf-16-le"):
        found = problems_of(None, io.BytesIO("It is down\nagain\n".encode(encoding)))
        assert found == ["standard input: is UTF-16; save it as UTF-8"]


def test_values_that_json_does_not_have_become_text(tmp_path: Path) -> None:
    import datetime

    import pyarrow.parquet

    from nlora.data.rows import as_line

    day = datetime.date(2026, 1, 2)
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist([{"text": "a", "day": day}]), tmp_path / "d.parquet"
    )
    (row,) = read_texts(tmp_path / "d.parquet", NOTHING)
    assert json.loads(as_line(row)) == {"text": "a", "day": "2026-01-02"}


def test_a_field_that_is_nested_too_deeply_to_be_written_is_a_problem_of_its_row() -> None:
    """Python's parser of JSON allows more than its writer, and Parquet any depth."""
    deep: list[Any] = []
    for _ in range(sys.getrecursionlimit()):
        deep = [deep]
    problems = ProblemList("d.jsonl")
    rows = list(to_texts([("d.jsonl:1", {"text": "a"}), ("d.jsonl:2", {"text": "b", "x": deep})], problems))
    assert [row["text"] for row in rows] == ["a", "b"]
    assert [str(problem) for problem in problems.report()] == ["d.jsonl:2: a field is nested too deeply"]
