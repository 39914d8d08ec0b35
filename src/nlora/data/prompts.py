"""The released prompt, to the character: kind of task, data set, instruction, options, text, `Answer:`.

Every method and every backbone is fed this one string, so scores can be compared with the published ones.

    prompt(task, example)
    # Task:SC
    # Dataset:amazon
    # What is the sentiment of the following paragraph? Choose one from the option.
    # Option: very negative, negative, neutral, positive, very positive ⟵ one space ends this line
    # Title: Very pleased ...
    # Answer:
"""

from __future__ import annotations

from nlora.data.task import Example, Task

TAIL = "\nAnswer:"


def head(task: Task) -> str:
    """Everything before the text: the same for all examples of a task, so it can be computed once."""
    lines = [task.instruction] if task.instruction else []
    if task.labels is not None and task.options_in_prompt:
        # The space before the line's end is the released template's.
        lines.append(f"Option: {', '.join(task.labels)} ")
    return names(task) + "".join(f"{line}\n" for line in lines)


def names(task: Task) -> str:
    """The first two lines, which the released result files leave out."""
    return f"Task:{task.type}\nDataset:{task.name}\n"


def parts(task: Task, example: Example) -> tuple[str, str, str]:
    """(head, text, tail) whose concatenation is the prompt; only the text may be shortened."""
    return head(task), example.sentence, TAIL


def prompt(task: Task, example: Example) -> str:
    """What the model reads before it answers (the released `get_instruction`, both names included).

    The released code formats a template with `str.format`, which swallows errors and returns the bare
    template when an instruction holds braces; here nothing is parsed, so braces stand for themselves.
    """
    return "".join(parts(task, example))
