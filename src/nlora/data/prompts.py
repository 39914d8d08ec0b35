"""The released prompt, character for character: type of task, data set, instruction, options, text, `Answer:`.

Every method and every backbone gets this prompt, so that scores are comparable with the published ones.

>>> task = Task("news", "TC", "Which topic? Choose one from the option.", ("sports", "world"), (), ())
>>> print(prompt(task, Example("0", "The match ended in a draw.", "sports")).replace("world ", "world<space>"))
Task:TC
Dataset:news
Which topic? Choose one from the option.
Option: sports, world<space>
The match ended in a draw.
Answer:
"""

from __future__ import annotations

from nlora.data.task import Example, Task

TAIL = "\nAnswer:"


def head(task: Task) -> str:
    """Everything before the text; the same for all examples of a task."""
    lines = [task.instruction] if task.instruction else []
    if task.labels is not None and task.options_in_prompt:
        # The released template ends this line with a space.
        lines.append(f"Option: {', '.join(task.labels)} ")
    return names(task) + "".join(f"{line}\n" for line in lines)


def names(task: Task) -> str:
    """The first two lines, which the released result files omit."""
    return f"Task:{task.type}\nDataset:{task.name}\n"


def frame(task: Task) -> tuple[str, str]:
    """(head, tail) around each text; nothing around a conversation, which the model's chat template writes."""
    return ("", "") if task.chat else (head(task), TAIL)


def parts(task: Task, example: Example) -> tuple[str, str, str]:
    """(head, text, tail), which together are the prompt; only the text may be shortened."""
    before, after = frame(task)
    return before, example.sentence, after


def prompt(task: Task, example: Example) -> str:
    """The model's input (the released `get_instruction`, with both names).

    The released code uses `str.format`, ignores its errors, and returns the unfilled template if an instruction
    contains braces. Here braces are ordinary characters.
    """
    return "".join(parts(task, example))
