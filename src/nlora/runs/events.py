"""What happens in a run, as events: progress bars, notebooks and programs receive them as a function.

>>> nlora.run("support.yaml", on_event=print)
runs/support: complete, nothing to do
Run('runs/support')
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened in a run; as text, a line to print.

    kind: training and scoring (a task starts at `done` = 0 of `total` steps or examples,
        or where its training resumes), stage_done (with the scores
        so far, in percent, by task), note (with a `text` for the user).
    stage: from 1; 0 is before any training. task: the task being trained or scored.

    >>> print(nlora.Event("training", stage=1, task="tickets", done=2, total=8))
    stage 1: tickets, step 2 of 8
    """

    kind: Literal["training", "scoring", "stage_done", "note"]
    stage: int = 0
    task: str = ""
    done: int = 0
    total: int = 0
    scores: Mapping[str, float] = field(default_factory=dict)
    text: str = ""

    def __str__(self) -> str:
        if self.kind == "note":
            return self.text
        if self.kind == "stage_done":
            shown = ", ".join(f"{task} {score:.1f}" for task, score in self.scores.items())
            return f"stage {self.stage}: {self.task} learned; {shown}"
        unit = "step" if self.kind == "training" else "answer"
        return f"stage {self.stage}: {self.task}, {unit} {self.done} of {self.total}"


OnEvent = Callable[[Event], None]


class Progress:
    """Turns what a run reports into events. An exception raised by `on_event` ends the run; finished stages stay."""

    def __init__(self, on_event: OnEvent | None = None) -> None:
        self._send: OnEvent = on_event or (lambda event: None)

    def say(self, line: str) -> None:
        """A line for the user."""
        self._send(Event("note", text=line))

    def training(self, stage: int, task: str, steps: int, done: int = 0) -> Callable[[int], None]:
        """The training of a stage starts, or resumes after `done` of its optimizer steps.

        Call the returned function with the number of steps done.
        """
        self._send(Event("training", stage, task, done, steps))
        return lambda step: self._send(Event("training", stage, task, step, steps))

    def scoring(self, stage: int, task: str, examples: int) -> Callable[[int], None]:
        """The scoring of a task starts. Call the returned function with the number of new answers."""
        self._send(Event("scoring", stage, task, 0, examples))
        answered = 0

        def more(count: int) -> None:
            nonlocal answered
            answered += count
            self._send(Event("scoring", stage, task, answered, examples))

        return more

    def stage_done(self, stage: int, task: str, scores: Mapping[str, float]) -> None:
        """A stage is committed. scores: by task, in percent."""
        self._send(Event("stage_done", stage, task, scores=scores))
