"""What a person sees while a sequence runs: bars with the time left, and one line per finished stage.

    with RunProgress(console) as progress:
        step = progress.training(1, "agnews", steps=50)
        step(1)                                     # one optimizer step done

On a terminal the bars move; elsewhere (a log file, CI) only the finished lines are printed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class RunProgress:
    """Shows the stages of one run. Use as a context manager, so that the terminal is put right again."""

    def __init__(self, console: Console, stages: int = 0) -> None:
        self._console = console
        self._stages = stages
        self._begin = time.perf_counter()
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> RunProgress:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def say(self, line: str) -> None:
        """One line above the bars; rich markup is taken literally."""
        self._console.print(escape(line), highlight=False)

    def training(self, stage: int, task: str, steps: int) -> Callable[[int], None]:
        """A bar for the training of a stage; the returned function takes the number of steps done."""
        bar = self._bars.add_task(escape(f"{self._position(stage)} train {task}"), total=steps, unit="steps")

        def done(step: int) -> None:
            self._bars.update(bar, completed=step)
            if step >= steps:
                self._bars.remove_task(bar)

        return done

    def scoring(self, stage: int, task: str, examples: int) -> Callable[[int], None]:
        """A bar for the scoring of a task; the returned function takes the number of further answers."""
        bar = self._bars.add_task(
            escape(f"{self._position(stage)} score {task}"), total=examples, unit="examples"
        )
        answered = 0

        def more(count: int) -> None:
            nonlocal answered
            answered += count
            self._bars.update(bar, completed=answered)
            if answered >= examples:
                self._bars.remove_task(bar)

        return more

    def stage_done(self, stage: int, task: str, scores: Mapping[str, float]) -> None:
        """One line: what the stage learned and every score so far, in percent."""
        shown = "  ".join(f"{name} {score:.1f}" for name, score in scores.items())
        minutes, seconds = divmod(int(time.perf_counter() - self._begin), 60)
        self.say(f"{self._position(stage)} {task} learned after {minutes}:{seconds:02d}   {shown}")

    def _position(self, stage: int) -> str:
        return f"[{stage}/{self._stages}]"
