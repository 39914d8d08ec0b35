"""Shows the events of a run on a terminal: bars with the time left, and a line per note and finished stage.

In a log file or in CI only the lines are printed.
"""

from __future__ import annotations

import os
import sys
import time

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from nlora.runs.console import TextConsole
from nlora.runs.events import Event

_UNITS = {"training": ("train", "steps"), "scoring": ("score", "examples")}


class WorkConsole(TextConsole):
    """The console of a command that works for long: the work goes on when nobody reads what it prints any more."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Bars:
    """A context manager, which restores the terminal, and a function of events.

    stages: of the run; None: the stage is not shown. shown: False: only the lines.
    """

    def __init__(self, console: Console, stages: int | None = None, *, shown: bool = True) -> None:
        self._console, self._stages = console, stages
        self._begin = time.perf_counter()
        self._current: TaskID | None = None
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not (console.is_terminal and shown),
        )

    def __enter__(self) -> Bars:
        self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.stop()

    def __call__(self, event: Event) -> None:
        if event.kind == "note":
            self._print(event.text)
        elif event.kind == "stage_done":
            scores = "  ".join(f"{task} {score:.1f}" for task, score in event.scores.items())
            minutes, seconds = divmod(int(time.perf_counter() - self._begin), 60)
            self._print(
                f"{self._position(event)}{event.task} learned after {minutes}:{seconds:02d}   {scores}"
            )
        else:
            self._advance(event)

    def _advance(self, event: Event) -> None:
        if event.done == 0 or self._current is None:
            self._remove()
            word, unit = _UNITS[event.kind]
            description = f"{self._position(event)}{word} {event.task}"
            self._current = self._bars.add_task(
                description, total=event.total, completed=event.done, unit=unit
            )
        self._bars.update(self._current, completed=event.done)
        if event.done >= event.total:
            self._remove()

    def _remove(self) -> None:
        if self._current is not None:
            self._bars.remove_task(self._current)
            self._current = None

    def _print(self, line: str) -> None:
        wraps = self._console.is_terminal  # lines of a log file stay whole
        self._console.print(line, markup=False, highlight=False, soft_wrap=not wraps)

    def _position(self, event: Event) -> str:
        return f"[{event.stage}/{self._stages}] " if self._stages is not None else ""
