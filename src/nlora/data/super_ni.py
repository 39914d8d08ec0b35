"""Tasks of Super-NaturalInstructions as SAPT released them: `SuperNI/<task>/{train,dev,test}.json`.

A file is one object with the task's "Definition" and its "Instances", each with an input and an output (or a list of
accepted ones). The layout is that of the folder CL_Benchmark of github.com/circle-hit/SAPT.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from nlora.data.readers import read_json
from nlora.data.rows import ProblemList, to_examples
from nlora.data.task import Example
from nlora.errors import Problem

TYPE = "SuperNI"
"""The name of the folder of these tasks."""


def read(
    place: Path, labels: Sequence[str] | None, problems: list[Problem]
) -> tuple[str, tuple[Example, ...], tuple[Example, ...]]:
    """The instruction of a task, its training and its test examples. dev.json is not read.

    place: the task's folder. labels: None: free text, as in the release. Mistakes are added to `problems`.
    """
    instruction, train = _read(place / "train.json", labels, problems)
    return instruction, train, _read(place / "test.json", labels, problems)[1]


def _read(
    path: Path, labels: Sequence[str] | None, problems: list[Problem]
) -> tuple[str, tuple[Example, ...]]:
    found = ProblemList(str(path))
    try:
        with path.open("rb") as file:
            content = read_json(file, found)
    except FileNotFoundError:
        content = None
        found.add(str(path), "no such file")
    except OSError as error:
        content = None
        found.add(str(path), f"cannot be read ({error.strerror})")
    definition, instances = _parts(content)
    examples: tuple[Example, ...] = ()
    if not found.count and (definition is None or instances is None):
        found.add(str(path), 'expected an object with a "Definition" and a list of "Instances"')
    elif instances is not None:
        examples = to_examples(_rows(path, instances), labels, found)
    problems += found.report()
    return f"Definition: {definition}", examples


def _parts(content: Any) -> tuple[str | None, list[Any] | None]:
    """The definition, of which the release has one or a list with one, and the instances."""
    if not isinstance(content, dict):
        return None, None
    definition, instances = content.get("Definition"), content.get("Instances")
    if isinstance(definition, list) and definition:
        definition = definition[0]
    text = definition.strip() if isinstance(definition, str) else ""
    return text or None, instances if isinstance(instances, list) else None


def _rows(path: Path, instances: list[Any]) -> Iterator[tuple[str, Any]]:
    yield from ((f"{path}: Instances[{i}]", row) for i, row in enumerate(instances))
