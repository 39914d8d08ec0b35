"""Forgotten examples: answered correctly when their task had just been learned, and incorrectly at the end.

They are found in the predictions of a task's own stage and of the last stage. Correct means an exact match with an
accepted answer after the released normalization, as in the accuracy matrix.
"""

from __future__ import annotations

from dataclasses import dataclass

from nlora.evaluation.answer import Answer
from nlora.report.page_blocks import Example, Prompt
from nlora.report.run_files import RunFiles
from nlora.runs.answers import ExampleKey, prediction_lines, read_answers

LONGEST_TEXT = 320
"""Characters of a text that the page shows, from its beginning and its end."""
LONGEST_PROMPT = 8000
"""Characters of a prompt that the page shows. Only long lists of labels and long texts exceed it."""
_LONGEST_ANSWER = 160


@dataclass(frozen=True, slots=True)
class TaskAnswers:
    """One task then and now. total: test examples. forgotten: right then and wrong now. gained: the reverse."""

    task: str
    total: int
    right_then: int
    right_now: int
    forgotten: int
    gained: int
    examples: tuple[Example, ...]


def find_forgotten(run: RunFiles, most: int) -> list[TaskAnswers]:
    """One entry for each task learned before the last stage, with at most `most` examples each.

    Tasks without predictions are left out. Raises RunError, in one line, for a broken file.
    """
    stages = [stage for stage in run.stages if stage.predictions is not None]
    if len(stages) < 2 or stages[-1].number != len(run.stages):
        return []
    last = stages[-1].predictions
    assert last is not None
    earlier = [stage for stage in stages[:-1] if stage.predictions is not None]
    now = read_answers(last, [stage.task for stage in earlier])
    found = []
    for stage in earlier:
        assert stage.predictions is not None
        then = read_answers(stage.predictions, [stage.task])[stage.task]
        if then and now[stage.task]:
            found.append(_compared(run.label, stage.task, then, now[stage.task], most))
    return found


def _compared(
    run: str, task: str, then: dict[ExampleKey, Answer], now: dict[ExampleKey, Answer], most: int
) -> TaskAnswers:
    both = [(then[key], now[key]) for key in then if key in now]
    lost = [(a, b) for a, b in both if a.is_right and not b.is_right]
    return TaskAnswers(
        task=task,
        total=len(both),
        right_then=sum(a.is_right for a, _ in both),
        right_now=sum(b.is_right for _, b in both),
        forgotten=len(lost),
        gained=sum(b.is_right and not a.is_right for a, b in both),
        examples=tuple(
            Example(
                run=run,
                task=task,
                text=shortened(a.text, LONGEST_TEXT),
                expected=shortened(" | ".join(a.accepted), _LONGEST_ANSWER),
                then=shortened(a.prediction, _LONGEST_ANSWER),
                now=shortened(b.prediction, _LONGEST_ANSWER),
            )
            for a, b in lost[:most]
        ),
    )


def shortened(text: str, longest: int) -> str:
    """The text on one line; a long one is cut in the middle, since the question is often at the end."""
    flat = " ".join(text.split())
    if len(flat) <= longest:
        return flat
    head = longest * 3 // 4
    return f"{flat[:head].rstrip()} … {flat[-(longest - head) :].lstrip()}"


def prompts_of(run: RunFiles) -> dict[str, Prompt]:
    """The first test example of each task that has predictions, with its whole prompt.

    Where the whole prompt is not stored (older versions), it is put together from the released field, which lacks the
    two lines with the names.
    """
    found = {}
    for stage in run.stages:
        row = (
            next(prediction_lines(stage.predictions, [stage.task]), None)
            if stage.predictions is not None
            else None
        )
        if row is None:
            continue
        instance = row["Instance"]
        instruction = str(instance.get("instruction", "{0}"))
        prompt = row.get("Prompt")
        if not isinstance(prompt, str):
            text = instruction.replace("{0}", str(instance["sentence"]), 1)
            prompt = f"Task:{row.get('Task')}\nDataset:{row['Dataset']}\n{text}"
        found[stage.task] = Prompt(
            stage.task,
            instruction,
            middle_left_out(prompt, LONGEST_PROMPT),
            shortened(str(instance["label"]), _LONGEST_ANSWER),
            shortened(str(row["Prediction"]), _LONGEST_ANSWER),
        )
    return found


def middle_left_out(text: str, longest: int) -> str:
    """The text; one of more characters without its middle."""
    if len(text) <= longest:
        return text
    half = longest // 2
    return f"{text[:half]}\n… {len(text) - 2 * half:,} characters left out …\n{text[-half:]}"
