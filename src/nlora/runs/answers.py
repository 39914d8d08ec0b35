"""The answers that a committed stage gave, read from its predict_eval_predictions.jsonl."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nlora.errors import RunError
from nlora.evaluation.answer import Answer
from nlora.runs.checksums import refuse_damaged_file

ExampleKey = tuple[str, str, str, int]
"""Id, text and label of an example, and how many equal ones come before it."""

TextKey = tuple[str, str, int]
"""The same without the id, which is the number of a row: other files may hold the same examples."""


def by_text(answers: Mapping[ExampleKey, Answer]) -> dict[TextKey, Answer]:
    """The answers, by what the examples say."""
    keys = text_keys((text, label) for _, text, label, _ in answers)
    return dict(zip(keys, answers.values(), strict=True))


def text_keys(examples: Iterable[tuple[str, str]]) -> list[TextKey]:
    """The keys of examples in order. examples: the text and the label of each."""
    seen: Counter[tuple[str, str]] = Counter()
    keys = []
    for example in examples:
        keys.append((*example, seen[example]))
        seen[example] += 1
    return keys


def read_answers(path: Path, tasks: Sequence[str]) -> dict[str, dict[ExampleKey, Answer]]:
    """The answers to these tasks, by task and example. Raises RunError for a file that was changed
    since it was written, and for a broken line, with its number.
    """
    found: dict[str, dict[ExampleKey, Answer]] = {task: {} for task in tasks}
    seen: dict[tuple[str, str, str, str], int] = {}
    for row in prediction_lines(path, tasks):
        task, instance = row["Dataset"], row["Instance"]
        example = (str(instance["id"]), str(instance["sentence"]), str(instance["label"]))
        before = seen.get((task, *example), 0)
        seen[(task, *example)] = before + 1
        score = row.get("Score")
        found[task][(*example, before)] = Answer(
            example[1],
            example[2],
            str(row["Prediction"]),
            exact=bool(row.get("Exact")),
            others=tuple(map(str, row.get("Answers", ())[1:])),
            is_outside=bool(row.get("Outside")),
            own_score=None if score is None else float(score),
        )
    return found


def prediction_lines(path: Path, tasks: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    """The lines of these tasks, parsed and checked.

    A stage scores all tasks before it, so most lines are skipped unparsed. Raises RunError as `read_answers`.
    """
    refuse_damaged_file(path)
    wanted = set(tasks)
    quoted = {json.dumps(task) for task in tasks} | {json.dumps(task, ensure_ascii=False) for task in tasks}
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if not any(name in line for name in quoted):
                    continue
                try:
                    row = json.loads(line)
                    if row["Dataset"] in wanted:
                        _ = row["Instance"]["id"], row["Instance"]["sentence"], row["Instance"]["label"]
                        _ = row["Prediction"], row.get("Answers", ())[1:], float(row.get("Score") or 0)
                        yield row
                except (ValueError, KeyError, TypeError, RecursionError) as error:
                    raise RunError(
                        f"{path}:{number}: not a prediction of this run; delete the file to do without it"
                    ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{path}: cannot be read: {error}") from error
