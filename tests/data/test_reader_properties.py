"""Files of drawn rows: what is written is read, and whatever else is in a file is named with its line."""

from __future__ import annotations

import csv
import datetime
import gzip
import io
import json
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from nlora.data.chat import ROLES, Message, as_text, messages_of
from nlora.data.fields import Fields
from nlora.data.files import read_examples
from nlora.data.readers import FORMATS
from nlora.data.rows import SHOWN_PER_FILE
from nlora.data.task import Example

SUFFIXES = [*FORMATS, ".jsonl.gz", ".csv.gz", ".parquet.gz"]
TEXT = st.text(st.characters(exclude_categories=("Cs",)), min_size=1).filter(str.strip)
SCALAR = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
VALUE = st.recursive(
    SCALAR, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, bytes], Path]:
    """file(suffix, contents) -> a new file; packed if it ends with .gz."""
    folder, numbers = tmp_path_factory.mktemp("rows"), count()

    def write(suffix: str, contents: bytes) -> Path:
        path = folder / f"{next(numbers)}{suffix}"
        path.write_bytes(gzip.compress(contents) if suffix.endswith(".gz") else contents)
        return path

    return write


def written(suffix: str, rows: list[dict[str, Any]]) -> bytes:
    """Rows as other programs write them."""
    kind = FORMATS[suffix.removesuffix(".gz")]
    if kind == "jsonl":
        return "".join(json.dumps(row, ensure_ascii=len(rows) % 2 == 0) + "\r\n" for row in rows).encode()
    if kind == "json":
        return json.dumps(rows, indent=len(rows) % 3).encode("utf-8-sig")
    if kind == "parquet":
        buffer = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), buffer)
        return buffer.getvalue()
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, list(rows[0]), delimiter="," if kind == "csv" else "\t")
    writer.writeheader()
    writer.writerows(rows)
    return table.getvalue().encode()


@pytest.mark.parametrize("suffix", SUFFIXES)
@given(
    rows=st.lists(
        st.tuples(TEXT, TEXT, st.text(st.characters(exclude_categories=("Cs",)))), min_size=1, max_size=5
    )
)
def test_what_any_writer_writes_is_read(
    file: Callable[[str, bytes], Path], suffix: str, rows: list[tuple[str, str, str]]
) -> None:
    records = [{"note": note, "label": label, "sentence": text} for text, label, note in rows]
    path = file(suffix, written(suffix, records))
    examples, problems = read_examples(str(path), labels=None, quoting=True)
    assert problems == []
    assert examples == tuple(Example(str(i), text, label) for i, (text, label, _) in enumerate(rows))


def is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip()) and value.isprintable()


def is_answer(value: Any) -> bool:
    return (
        isinstance(value, bool | int) or is_text(value) or (isinstance(value, float) and abs(value) < 1e300)
    )


def is_good(row: Any) -> bool:
    """Whether a row has a text and an answer, told otherwise than nlora does."""
    if not isinstance(row, dict) or not {"text", "label"} <= row.keys():
        return False
    label = row["label"]
    answers = label if isinstance(label, list) else [label]
    return is_text(row["text"]) and bool(answers) and all(map(is_answer, answers))


ROW = st.fixed_dictionaries(
    {"text": st.just("x") | VALUE, "label": st.just("a") | VALUE | st.lists(SCALAR, max_size=3)}
)
LINES = st.lists(
    ROW.map(json.dumps) | VALUE.map(json.dumps) | st.sampled_from(['{"text": "x"', "{}", "nul", "7" * 5000])
)


@given(lines=LINES)
def test_each_wrong_line_is_named_and_no_other(file: Callable[[str, bytes], Path], lines: list[str]) -> None:
    lines = ['{"text": "fine", "label": "fine"}', *lines]
    rows = []
    for line in lines:
        try:
            rows.append(json.loads(line))
        except ValueError:
            rows.append(None)
    # Characters that a terminal does not show may be halves of one; the test does not decide that again.
    assume(all(text.isprintable() for line in rows for text in strings(line)))
    path = file(".jsonl", "\n".join(lines).encode())
    examples, problems = read_examples(str(path), labels=None)
    wrong = [number for number, row in enumerate(rows, 1) if not is_good(row)]
    assert len(examples) == len(lines) - len(wrong)
    # A row may lack both text and answer, which are two mistakes.
    named = list(dict.fromkeys(problem.source for problem in problems[:SHOWN_PER_FILE]))
    assert named == [f"{path}:{number}" for number in wrong[: len(named)]]
    assert len(problems) > SHOWN_PER_FILE or len(named) == len(wrong)


def strings(value: Any) -> list[str]:
    if isinstance(value, dict | list):
        inner = [*value, *value.values()] if isinstance(value, dict) else value
        return [text for one in inner for text in strings(one)]
    return [value] if isinstance(value, str) else []


MOMENTS = st.datetimes(datetime.datetime(1900, 1, 1), datetime.datetime(9000, 1, 1))
COLUMNS = {
    pyarrow.string(): st.text(st.characters(exclude_categories=("Cs",))),
    pyarrow.int64(): st.integers(-(2**63), 2**63 - 1),
    pyarrow.float64(): st.floats(),
    pyarrow.bool_(): st.booleans(),
    pyarrow.binary(): st.binary(),
    pyarrow.timestamp("us"): MOMENTS,
    pyarrow.list_(pyarrow.string()): st.lists(st.text("ab"), max_size=2),
    pyarrow.struct([("role", pyarrow.string())]): st.fixed_dictionaries({"role": st.text("ab")}),
}


@st.composite
def tables(draw: st.DrawFn) -> pyarrow.Table:
    names = draw(
        st.lists(st.sampled_from(["text", "label", "messages", "lang", "é"]), min_size=1, max_size=4)
    )
    size = draw(st.integers(0, 3))
    columns = []
    for _ in names:
        kind = draw(st.sampled_from(list(COLUMNS)))
        values = st.lists(st.none() | COLUMNS[kind], min_size=size, max_size=size)
        columns.append(pyarrow.array(draw(values), kind))
    return pyarrow.Table.from_arrays(columns, names=names)


@given(
    table=tables(), fields=st.sampled_from([Fields(), Fields(template="{text} {lang}"), Fields(chat=True)])
)
def test_a_parquet_table_of_any_types_is_read_or_refused(
    file: Callable[[str, bytes], Path], table: pyarrow.Table, fields: Fields
) -> None:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(table, buffer)
    path = file(".parquet", buffer.getvalue())
    examples, problems = read_examples(str(path), labels=None, fields=fields)
    assert examples or problems
    assert all(str(problem).startswith(str(path)) for problem in problems)
    if any(table.column_names.count(name) > 1 for name in fields.used):
        assert "duplicate column" in str(problems[0])


def test_dates_that_python_does_not_have_are_refused_where_they_are_asked_for(
    file: Callable[[str, bytes], Path],
) -> None:
    buffer = io.BytesIO()
    days = pyarrow.array([2**30], pyarrow.date32())
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a"], "label": ["b"], "day": days}), buffer)
    path = file(".parquet", buffer.getvalue())
    (problem,) = read_examples(str(path), labels=None, fields=Fields(template="{text} {day}"))[1]
    assert str(problem).startswith(f"{path}: not readable as Parquet: days=1073741824")
    examples, problems = read_examples(str(path), labels=None)
    assert [(example.sentence, example.label) for example in examples] == [("a", "b")]
    assert problems == []


MESSAGE = st.builds(Message, st.sampled_from(sorted(set(ROLES.values()))), st.text())


@given(st.lists(MESSAGE, min_size=1))
def test_a_conversation_can_be_read_back_from_its_text(messages: list[Message]) -> None:
    assert messages_of(as_text(messages)) == messages


@given(turns=st.lists(st.tuples(st.sampled_from(list(ROLES)), TEXT), min_size=1, max_size=6))
def test_a_conversation_is_an_example_exactly_if_the_assistant_answers_a_user(
    file: Callable[[str, bytes], Path], turns: list[tuple[str, str]]
) -> None:
    row = {"conversations": [{"from": role, "value": text} for role, text in turns]}
    examples, problems = read_examples(str(file(".jsonl", json.dumps(row).encode())), labels=None)
    roles = [ROLES[role] for role, _ in turns]
    assert bool(examples) == ("user" in roles and roles[-1] == "assistant") == (not problems)
    for example in examples:
        read_back = [*messages_of(example.sentence), Message("assistant", example.label)]
        assert read_back == [Message(ROLES[role], text) for role, text in turns]


@pytest.mark.parametrize("number", ["7" * 400, "-" + "7" * 400, "1e300"])
def test_a_label_may_be_a_number_of_any_size(file: Callable[[str, bytes], Path], number: str) -> None:
    (example,), problems = read_examples(
        str(file(".jsonl", f'{{"text": "x", "label": {number}}}'.encode())), labels=None
    )
    assert not problems
    assert float(example.label) == float(number)


def test_many_keys_and_columns_take_no_longer_than_they_are(file: Callable[[str, bytes], Path]) -> None:
    """Each in its time squared would be half a minute."""
    keys = "".join(f'"k{i}": 1, ' for i in range(40_000))
    row = f'{{{keys}"text": "x", "label": "a", "k7": 1}}'
    (problem,) = read_examples(str(file(".jsonl", row.encode())), labels=None)[1]
    assert problem.what == "duplicate key 'k7'; keep one of them"
    header = ",".join(f"k{i}" for i in range(40_000))
    (problem,) = read_examples(str(file(".csv", f"{header},text,text\n".encode())), labels=None)[1]
    assert problem.what == "duplicate column 'text'"


def test_columns_without_a_name_and_those_that_nobody_reads_may_be_there_twice(
    file: Callable[[str, bytes], Path],
) -> None:
    """As spreadsheets leave them at the end."""
    path = file(".csv", b",sentence,label,note,note,,\n0,x,red,1,2,,\n")
    (example,), problems = read_examples(str(path), labels=None)
    assert (example.sentence, example.label, problems) == ("x", "red", [])
    (problem,) = read_examples(str(path), labels=None, fields=Fields(template="{sentence} {note}"))[1]
    assert problem.what == "duplicate column 'note'"


def test_a_value_in_a_message_cannot_break_its_line(file: Callable[[str, bytes], Path]) -> None:
    row = json.dumps({"text": "x", "label": "a\nb\u2028c\x1b[31m\td\\n"})
    (problem,) = read_examples(str(file(".jsonl", row.encode())), labels=("é",))[1]
    assert "label 'a\\nb\\u2028c\\x1b[31m\td\\n' is not one of the task's labels: é" in str(problem)
