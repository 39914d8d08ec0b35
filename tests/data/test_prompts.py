"""The prompt is the released one, character by character."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nlora.data import cl_benchmark
from nlora.data.prompts import parts, prompt
from nlora.data.task import Example, Task


def test_equals_every_released_prompt(shared: Path, golden: dict[str, Any]) -> None:
    compared = 0
    for name, data in golden["datasets"].items():
        task = cl_benchmark.read(shared / "data" / "CL_Benchmark", name)
        for row in data["examples"]:
            example = Example(row["id"], row["sentence"], row["label"])
            assert prompt(task, example) == row["source_formatted"], name
            compared += 1
    assert compared == 70


def test_braces_in_a_text_are_characters(shared: Path, golden: dict[str, Any]) -> None:
    row = golden["quirks"]["brace_example"]
    task = cl_benchmark.read(shared / "data" / "CL_Benchmark", "QQP")
    assert prompt(task, Example(row["id"], row["sentence"], row["label"])) == row["source_formatted"]


def test_copa_has_neither_instruction_nor_options(shared: Path) -> None:
    task = cl_benchmark.read(shared / "data" / "CL_Benchmark", "COPA")
    assert parts(task, Example("0", "Which?", "A")) == ("Task:COPA\nDataset:COPA\n", "Which?", "\nAnswer:")


def test_free_text_has_no_options() -> None:
    task = Task("notes", "QA", "Answer in one word.", None, (), ())
    expected = "Task:QA\nDataset:notes\nAnswer in one word.\nWhere {is} it?\nAnswer:"
    assert prompt(task, Example("0", "Where {is} it?", "here")) == expected


def test_parts_make_up_the_prompt() -> None:
    task = Task("t", "T", "Choose {0}.", ("a", "b"), (), ())
    example = Example("0", "x\n", "a")
    assert "".join(parts(task, example)) == "Task:T\nDataset:t\nChoose {0}.\nOption: a, b \nx\n\nAnswer:"
