"""What grows with a run is written piece by piece."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from nlora.data.task import Example, Task
from nlora.evaluation.evaluator import Answers
from nlora.evaluation.text_metrics import rouge
from nlora.runs.atomic import write_lines
from nlora.runs.released_files import predict_results, write_results
from nlora.runs.stage_results import predictions_of, with_prompts

EXAMPLES, LABELS = 1500, tuple(f"c{i}" for i in range(1000))


def test_the_answers_of_a_stage_are_never_in_memory_as_a_whole(tmp_path: Path) -> None:
    """Each of these prompts lists a thousand labels, so the file is large."""
    test = tuple(Example(str(i), f"thing {i}", LABELS[i % 1000]) for i in range(EXAMPLES))
    task = Task("many", "TC", "Which one?", LABELS, test[:2], test)
    answers = Answers(tuple(example.label for example in test), "labels", 1.0, 1)
    rouge("loads", "nltk")
    tracemalloc.start()
    try:
        predictions = predictions_of(task, answers)
        predict = predict_results(predictions, decode="labels", runtime_seconds=1, steps=1)
        write_results(tmp_path, {}, predict, with_prompts(task, predictions))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    file = tmp_path / "predict_eval_predictions.jsonl"
    assert file.stat().st_size > 15e6
    assert peak < file.stat().st_size / 10
    assert predict["predict_exact_match"] == 100
    with file.open() as lines:
        assert [json.loads(line)["Instance"]["id"] for line in lines] == [e.id for e in test]


def test_lines_that_break_off_leave_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def broken() -> Iterator[str]:
        yield "new\n"
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        write_lines(path, broken())
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a.txt", "old")]
