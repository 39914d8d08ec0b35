"""What a task is: an instruction, a label set (or none), and examples to train and to test on.

    task = Task(name="tickets", type="tickets", instruction="Which team?", labels=("billing", "network"),
                train=(Example("0", "My invoice is wrong", "billing"),), test=(...,))

A sequence is a plain list of tasks, in the order in which they are learned.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Example:
    """One text and what the model should answer.

    id: unique within its split, as released (the row's number in its file).
    """

    id: str
    sentence: str
    label: str


@dataclass(frozen=True, slots=True)
class TokenizedExample:
    """One example as the model sees it; the answer's ids end with the end token."""

    prompt_ids: list[int]
    answer_ids: list[int]


@dataclass(frozen=True, slots=True)
class Task:
    """One task of a sequence.

    name: unique within a sequence; names the folder of its stage and its column of R.
    type: the kind of task, as the benchmark groups them (TC, SC, NLI, ...); part of the prompt.
    instruction: what the model is asked, without the options; may be empty (COPA).
    labels: the label words in the order in which the prompt lists them, or None for free text.
    options_in_prompt: whether the prompt lists the labels (COPA does not).
    drawn_from: digests of the examples that train and test are seeded samples of; None where they are all there are.
    """

    name: str
    type: str
    instruction: str
    labels: tuple[str, ...] | None
    train: tuple[Example, ...]
    test: tuple[Example, ...]
    options_in_prompt: bool = True
    drawn_from: tuple[str | None, str | None] = (None, None)
