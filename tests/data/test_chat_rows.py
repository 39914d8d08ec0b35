"""Rows of messages: read from every format, and refused with one line that names the row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nlora.config.schema import Config
from nlora.config.task_source import TaskSource
from nlora.data.chat import Message, as_text, messages_of
from nlora.data.fields import Fields
from nlora.data.files import read_examples
from nlora.data.load import load_tasks
from nlora.data.task import Example
from nlora.errors import InputErrors

ASKED = {"role": "user", "content": "Is it down?"}
ANSWERED = {"role": "assistant", "content": "No."}
ROW = {
    "messages": [
        {"role": "system", "content": ""},
        ASKED,
        ANSWERED,
        ASKED,
        {**ANSWERED, "content": "Yes\n  now."},
    ]
}
TEXT = "system: \nuser: Is it down?\nassistant: No.\nuser: Is it down?"
SHAREGPT = {
    "conversations": [{"from": "human", "value": "Is it down?"}, {"from": "gpt", "value": "No."}],
    "text": "not this",
}


def write(path: Path, *rows: Any) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize(
    "messages",
    [
        [Message("user", "a")],
        [Message("system", ""), Message("user", "a\n\nuser: b\n  c"), Message("assistant", "\n")],
        [Message("user", "a\n"), Message("assistant", "  user: b: c\r\n"), Message("tool", "{}")],
    ],
)
def test_the_messages_can_be_read_back_from_the_text(messages: list[Message]) -> None:
    assert messages_of(as_text(messages)) == messages


def test_different_conversations_have_different_texts() -> None:
    one = [Message("user", "a\nassistant: b")]
    assert as_text(one) != as_text([Message("user", "a"), Message("assistant", "b")])


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet", "folder"])
def test_every_format_gives_the_same_conversations(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"chats.{kind}"
    if kind == "jsonl":
        write(path, ROW)
    elif kind == "json":
        path.write_text(json.dumps([ROW]))
    else:
        import datasets

        table = datasets.Dataset.from_list([ROW])
        if kind == "parquet":
            table.to_parquet(str(path))
        else:
            table.save_to_disk(str(path))
    assert read_examples(str(path), labels=None) == ((Example("0", TEXT, "Yes\n  now.", chat=True),), [])


def test_sharegpt_names_are_mapped_and_parts_of_text_are_joined(tmp_path: Path) -> None:
    parts = {
        "role": "user",
        "content": [{"type": "text", "text": "Is it "}, {"type": "text", "text": "down?"}],
    }
    path = write(tmp_path / "a.jsonl", SHAREGPT, {"conversations": [parts, ANSWERED]})
    examples, problems = read_examples(path, labels=("No.", "Yes."))
    assert not problems
    assert [(e.sentence, e.label) for e in examples] == [("user: Is it down?", "No.")] * 2


def test_a_column_of_another_name(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"turns": [ASKED, ANSWERED], "sentence": "x", "label": "y"})
    fields = Fields.of(TaskSource(name="a", train=path, test=path, columns={"messages": "turns"}))
    (example,), _ = read_examples(path, labels=None, fields=fields)
    assert example == Example("0", "user: Is it down?", "No.", chat=True)


def test_a_row_with_a_text_and_an_answer_stays_one(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"sentence": "x", "label": "y", "messages": [ASKED, ANSWERED]})
    assert read_examples(path, labels=None)[0] == (Example("0", "x", "y"),)


def messages(*rows: Any) -> dict[str, Any]:
    return {"messages": list(rows)}


# fmt: off
WRONG = [
    ({"messages": "Hi"}, "messages is text instead of a list of messages"),
    ({"messages": {"role": ["user"]}}, "messages is an object instead of a list of messages"),
    (messages(), "messages is empty"),
    (messages("Hi", ANSWERED), "messages[0] is text instead of an object with role and content"),
    (messages({"content": "Hi"}, ANSWERED), "messages[0] has no 'role'"),
    (messages(ASKED, {"role": "assistant"}), "messages[1] has no 'content'"),
    (messages(ASKED, {"from": "gpt"}), "messages[1] has no 'value'"),
    (messages(ASKED, {**ANSWERED, "content": None}), "messages[1].content is empty (null) instead of text"),
    (messages(ASKED, {**ANSWERED, "content": " "}), "messages[1].content is empty"),
    (messages(ASKED, {**ANSWERED, "content": "\ud83d"}), "messages[1].content holds \\ud83d, which is half"),
    (messages({**ASKED, "content": [{"type": "image", "url": "x"}]}, ANSWERED),
     "messages[0].content[0] is a part of type 'image'; only parts of type 'text' are supported"),
    (messages({**ASKED, "content": ["x"]}, ANSWERED), "messages[0].content[0] is no part with text"),
    (messages({**ASKED, "role": "function"}, ANSWERED),
     "messages[0] has the role 'function'; known: system, user, assistant, tool"),
    (messages({**ASKED, "role": 1}, ANSWERED), "messages[0] has the role the number 1"),
    (messages(ASKED, {**ANSWERED, "tool_calls": [{}]}), "messages[1] has tool_calls, which are not supported"),
    (messages(ASKED), "messages ends with a turn of the user; the last turn must be the assistant's"),
    (messages(ANSWERED), "messages has no turn of the user"),
    ({"sentence": "x", "label": "y"}, "no field 'messages' (or conversations); the fields are: sentence, label; all"),
]
# fmt: on


@pytest.mark.parametrize(("row", "what"), WRONG, ids=[what[:40] for _, what in WRONG])
def test_a_wrong_row_gets_one_line_with_its_place(tmp_path: Path, row: Any, what: str) -> None:
    path = write(tmp_path / "a.jsonl", {"messages": [ASKED, ANSWERED]}, row)
    _, problems = read_examples(path, labels=None)
    (problem,) = map(str, problems)
    assert problem.startswith(f"{path}:2: {what}")


def test_rows_of_texts_that_become_conversations(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"sentence": "x", "label": "y"}, {"messages": [ASKED, ANSWERED]})
    _, problems = read_examples(path, labels=None)
    assert str(problems[0]).startswith(f"{path}:2: no field 'sentence'")


def test_the_last_turn_must_be_a_label(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"messages": [ASKED, ANSWERED]})
    _, (problem,) = read_examples(path, labels=("No", "Yes"))
    assert "label 'No.' is not one of the task's labels: No, Yes" in str(problem)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({}, "task 'a' has conversations in 'train' and texts in 'test'; give it one of the two"),
        (
            {"train": "b.jsonl", "test": "a.jsonl"},
            "task 'a' has texts in 'train' and conversations in 'test'",
        ),
        ({"test": "*.jsonl"}, "task 'a' has a conversation in some rows and a text in others"),
        (
            {"test": "c.jsonl", "instruction": "Answer."},
            "the rows of task 'a' are conversations, which get no instruction; leave it out",
        ),
    ],
)
def test_mistakes_of_a_task_as_a_whole(tmp_path: Path, change: dict[str, str], what: str) -> None:
    write(tmp_path / "a.jsonl", {"messages": [ASKED, ANSWERED]})
    write(tmp_path / "b.jsonl", {"sentence": "x", "label": "y"})
    write(tmp_path / "c.jsonl", SHAREGPT)
    source = {"name": "a", "train": "a.jsonl", "test": "b.jsonl", **change}
    with pytest.raises(InputErrors, match="task 'a'") as caught:
        load_tasks(Config(tasks=[source]), base_folder=tmp_path)
    assert what in str(caught.value)


def test_the_column_of_a_conversation_leaves_nothing_for_text_and_answer() -> None:
    with pytest.raises(ValueError, match="so text and answer are in the conversation"):
        TaskSource(name="a", train="a", test="b", columns={"messages": "m", "label": "y"})
