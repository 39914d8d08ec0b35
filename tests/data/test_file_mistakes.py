"""Mistakes in user files: each is reported with its file and line, and what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from nlora.data.fields import Fields
from nlora.data.files import read_examples
from nlora.data.rows import SHOWN_PER_FILE

LABELS = ("billing", "network")


def problems_of(path: Path, labels: tuple[str, ...] = LABELS) -> list[str]:
    return [
        str(problem).replace(f"{path}", path.name) for problem in read_examples(str(path), labels=labels)[1]
    ]


def problems_in(tmp_path: Path, name: str, content: str | bytes) -> list[str]:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return problems_of(path)


def test_jsonl_problems_have_their_lines(tmp_path: Path) -> None:
    lines = [
        '{"sentence": "fine", "label": "billing"}',
        '{"sentence": "cut off", "label": ',
        "",
        '{"sentence": 12, "label": "billing"}',
        '{"sentence": "x", "label": "Netwrk"}',
        '["a", "list"]',
        '{"sentence": "x", "label": null}',
    ]
    assert problems_in(tmp_path, "data.jsonl", "\n".join(lines)) == [
        "data.jsonl:2: not JSON: Expecting value (column 34)",
        "data.jsonl:4: sentence is the number 12 instead of text",
        "data.jsonl:5: label 'Netwrk' is not one of the task's labels: billing, network; "
        "did you mean 'network'?",
        "data.jsonl:6: a list instead of an object with the fields sentence and label",
        "data.jsonl:7: label is empty (null) instead of text",
    ]


@pytest.mark.parametrize(
    ("label", "word"), [("1", "1"), ("1.0", "1"), ("-2", "-2"), ("12.5", "12.5"), ("true", "true")]
)
def test_a_number_is_read_as_text_and_must_be_one_of_the_labels(
    tmp_path: Path, label: str, word: str
) -> None:
    (problem,) = problems_in(tmp_path, "data.jsonl", f'{{"sentence": "x", "label": {label}}}')
    assert problem.startswith(
        f"data.jsonl:1: label '{word}' is not one of the task's labels: billing, network"
    )
    assert problem.endswith("; label_names gives such values their words") == word.lstrip("-").isdecimal()


@pytest.mark.parametrize("label", ["NaN", "Infinity", "{}"])
def test_a_label_that_is_no_value_is_refused(tmp_path: Path, label: str) -> None:
    (problem,) = problems_in(tmp_path, "data.jsonl", f'{{"sentence": "x", "label": {label}}}')
    assert "data.jsonl:1: label is " in problem
    assert problem.endswith(" instead of text")


def test_missing_fields_name_the_existing_ones(tmp_path: Path) -> None:
    (problem,) = problems_in(tmp_path, "data.jsonl", '{"txt": "x", "label": "billing"}')
    assert problem == (
        "data.jsonl:1: no field 'sentence' (or input or text); the fields are: txt, label; "
        "the task can name another: columns: {text: ...}"
    )


def test_problems_beyond_the_first_few_are_counted(tmp_path: Path) -> None:
    found = problems_in(tmp_path, "data.jsonl", '{"sentence": "", "label": "billing"}\n' * 12)
    assert len(found) == SHOWN_PER_FILE + 1
    assert found[0] == "data.jsonl:1: sentence is empty"
    assert found[-1] == "data.jsonl: 7 more rows have problems"


@pytest.mark.parametrize(
    ("name", "content"),
    [("d.jsonl", ""), ("d.jsonl", "\n \n"), ("d.json", "[]"), ("d.csv", "sentence,label\n")],
)
def test_files_without_examples(tmp_path: Path, name: str, content: str) -> None:
    assert problems_in(tmp_path, name, content) == [f"{name}: has no examples"]


def test_latin1_is_named_with_its_line(tmp_path: Path) -> None:
    content = "sentence,label\nfine,billing\ncafé,billing\n".encode("latin-1")
    assert problems_in(tmp_path, "d.csv", content) == [
        "d.csv:3: not UTF-8 (byte 0xe9); save the file as UTF-8"
    ]


UTF16 = {
    "d.csv": "sentence,label\nx,billing\ny,billing\n",
    "d.tsv": "sentence\tlabel\nx\tbilling\ny\tbilling\n",
    "d.jsonl": '{"sentence": "caf\u00e9", "label": "billing"}\n{"sentence": "y", "label": "billing"}\n',
    "d.json": '[\n{"sentence": "x", "label": "billing"}]\n',
}


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("name", UTF16)
def test_utf16_is_one_problem_with_or_without_its_mark(tmp_path: Path, name: str, encoding: str) -> None:
    assert problems_in(tmp_path, name, UTF16[name].encode(encoding)) == [
        f"{name}: is UTF-16; save it as UTF-8"
    ]


# fmt: off
WRONG_FORMATS = [
    ("d.csv", "sentence,label,sentence\nx,billing,y\n", "d.csv:1: duplicate column 'sentence'"),
    ("d.csv", "sentence;label\nx;billing\n", "are the columns separated by commas?"),
    ("d.csv", 'sentence,label\n"a\nb",billing\nx,billing,y\n', "d.csv:4: 3 cells, but the header has 2"),
    ("d.csv", 'sentence,label\nx,billing\n"open,billing\n', "d.csv:3: not readable as CSV: unexpected end"),
    ("d.csv", "sentence,label\rx,billing\r", "d.csv:1: not readable as CSV: a line ends with a carriage return alone"),
    ("d.tsv", "sentence\tlabel\rx\tbilling\r", "d.tsv:1: not readable as TSV: a line ends with a carriage return al"),
    ("d.json", "", "d.json: is empty"),
    ("d.json", " \n", "d.json: is empty"),
    ("d.csv", "messages,id\nx,y\n", "d.csv:2: messages is text instead of a list of messages"),
    ("d.tsv", "sentence,label\nx,billing\n", "are the columns separated by tabs?"),
    ("d.json", '{"sentence": "x"}', "d.json: expected a list of objects"),
    ("d.json", '{"sentence": "x"}\n{"sentence": "y"}', "name the file .jsonl"),
    ("d.json", '[{"conversations": []}]', "d.json[0]: conversations is empty"),
    ("d.json", '[{"text": "x", "text": "y", "label": "b"}]', "d.json[0]: duplicate key 'text'"),
    ("d.json", f'[{{"sentence": "x", "id": {"7" * 5000}}}]', "d.json: a number of more than 4300 digits"),
    ("d.json", "[" * 100_000, "d.json: lists or objects nested too deeply"),
    ("d.jsonl", '[{"sentence": "x", "label": "billing"}]', "d.jsonl:1: a list instead of one object per line"),
    ("d.jsonl", '\n[\n{"sentence": "x"},\n{"sentence": "y"}\n]\n', "it is JSON: name it .json"),
    ("d.jsonl", '\n{"messages": [2]}\n', "d.jsonl:2: messages[0] is the number 2 instead of an object"),
    ("d.jsonl", '\n{"sentence": "x", "label": "a", "label": "b"}', "d.jsonl:2: duplicate key 'label'"),
    (
        "d.jsonl",
        '{"messages": [{"role": "user", "content": "a", "content": "b"}, {"role": "assistant", "content": "c"}]}',
        "d.jsonl:1: messages[0] has a duplicate key 'content'; keep one of them",
    ),
    ("d.jsonl", f'{{"sentence": "x", "id": {"7" * 5000}}}', "d.jsonl:1: a number of more than 4300 digits"),
    ("d.jsonl", "\n" + '{"a":' * 100_000, "d.jsonl:2: lists or objects nested too deeply"),
    ("d.jsonl.bz2", "x", "d.jsonl.bz2 is compressed, which is not supported; unpack it first: bunzip2 d.jsonl.bz2"),
    ("d.jsonl.gz", "x", "d.jsonl.gz: cannot be read (not a complete gzip file: Not a gzipped file"),
    ("d.txt.gz", "x", "d.txt.gz has an unknown format '.txt'; known: .jsonl"),
    ("d.parquet", "no parquet", "d.parquet: not readable as Parquet"),
    ("d.txt", "x", "d.txt has an unknown format '.txt'; known: .jsonl"),
]
# fmt: on


@pytest.mark.parametrize(("name", "content", "said"), WRONG_FORMATS)
def test_files_of_a_wrong_format(tmp_path: Path, name: str, content: str, said: str) -> None:
    (problem,) = problems_in(tmp_path, name, content)
    assert said in problem


HALF = "\\ud83d"
HALVES = [
    ("d.jsonl", f'{{"sentence": "x {HALF} y", "label": "billing"}}', "d.jsonl:1: sentence holds"),
    ("d.jsonl", f'{{"sentence": "x", "label": "billing{HALF}"}}', "d.jsonl:1: label holds"),
    ("d.json", f'[{{"sentence": "{HALF}", "label": "billing"}}]', "d.json[0]: sentence holds"),
]


@pytest.mark.parametrize(("name", "content", "said"), HALVES)
def test_half_of_a_character_is_reported(tmp_path: Path, name: str, content: str, said: str) -> None:
    """A lone surrogate cannot be tokenized, but the whole emoji, in two escapes, can."""
    (problem,) = problems_in(tmp_path, name, content)
    assert (
        problem
        == f"{said} {HALF}, which is half of a character; correct the text, or leave the character out"
    )
    path = tmp_path / name
    path.write_text(content.replace(HALF, HALF + "\\ude00"))
    (example,), problems = read_examples(str(path), labels=None)
    assert problems == []
    assert "\U0001f600" in example.sentence + example.label


def test_parquet_text_that_is_not_utf8(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    bad = pyarrow.array([b"fine", b"\xff"], pyarrow.binary()).view(pyarrow.string())
    table = pyarrow.table({"sentence": bad, "label": ["billing", "network"]})
    pyarrow.parquet.write_table(table, tmp_path / "d.parquet")
    assert problems_of(tmp_path / "d.parquet") == ["d.parquet[0]: not UTF-8, in this row or a later one"]


def _parquet_with_zone(path: Path, zone: str) -> None:
    import pyarrow
    import pyarrow.parquet

    when = pyarrow.array([0], pyarrow.timestamp("us", tz=zone))
    table = pyarrow.table({"text": ["It is down"], "when": when, "label": ["network"]})
    pyarrow.parquet.write_table(table, path)


def test_a_time_zone_that_nobody_knows_is_a_problem_of_its_column_only(tmp_path: Path) -> None:
    path = tmp_path / "d.parquet"
    _parquet_with_zone(path, "UTK")
    (example,), problems = read_examples(str(path), labels=["network"])
    assert problems == []
    assert (example.sentence, example.label) == ("It is down", "network")
    fields = Fields(template="{text} ({when})")
    _, problems = read_examples(str(path), labels=["network"], fields=fields)
    (problem,) = map(str, problems)
    assert problem.startswith(f"{path}: not readable as Parquet: unknown time zone ")
    assert "UTK" in problem


@pytest.mark.parametrize(
    ("label", "points"),
    [
        (
            "cafe\u0301",
            "U+0065 (latin small letter e) U+0301 (combining acute accent) where the other has "
            "U+00E9 (latin small letter e with acute)",
        ),
        ("caf\u00e9\u200b", "U+200B (zero width space) where the other has nothing"),
        ("caf\u00e9\u00a0", "U+00A0 (no-break space) where the other has nothing"),
    ],
)
def test_a_label_that_only_looks_like_the_tasks_says_what_differs(
    tmp_path: Path, label: str, points: str
) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text(f'{{"sentence": "x", "label": "{label}"}}', encoding="utf-8")
    (problem,) = problems_of(path, ("caf\u00e9", "bar"))
    assert (
        problem == f"d.jsonl:1: label '{label}' only looks like the task's label 'caf\u00e9': it has {points}"
    )
