"""What happens in a run, told to a function: progress for notebooks and programs, in place of bars.

nlora.run("my.yaml", on_event=print)          # stage 1: agnews, step 5 of 50
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal

from rich.console import Console

from nlora.runs.progress import RunProgress


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened in a run; as text, a line to print.

    kind: training and scoring (a task begins with `done` = 0 of `total` steps or examples, and goes on),
        stage_done (with the scores so far, in percent, by task), note (with `text`, what a person should know).
    stage: from 1; 0 before any training. task: what is trained or scored.

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


class EventProgress(RunProgress):
    """Tells a function what happens, or nobody. What the function raises ends the run, which keeps its stages."""

    def __init__(self, on_event: Callable[[Event], None] | None) -> None:
        super().__init__(Console(quiet=True))
        self._tell = on_event if on_event is not None else lambda event: None

    def __enter__(self) -> EventProgress:
        return self  # no bars: these would take over what the function prints

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing was begun."""

    def say(self, line: str) -> None:
        self._tell(Event("note", text=line))

    def training(self, stage: int, task: str, steps: int) -> Callable[[int], None]:
        self._tell(Event("training", stage, task, 0, steps))
        return lambda step: self._tell(Event("training", stage, task, step, steps))

    def scoring(self, stage: int, task: str, examples: int) -> Callable[[int], None]:
        self._tell(Event("scoring", stage, task, 0, examples))
        answered = 0

        def more(count: int) -> None:
            nonlocal answered
            answered += count
            self._tell(Event("scoring", stage, task, answered, examples))

        return more

    def stage_done(self, stage: int, task: str, scores: Mapping[str, float]) -> None:
        self._tell(Event("stage_done", stage, task, scores=scores))
