"""Resume points of a training without a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path


class Points:
    """Saves after every step, or resumes after one of them."""

    is_stopping = False

    def __init__(self, folder: Path, resumed: int | None = None) -> None:
        self._folder = folder
        self.latest = None if resumed is None else folder / str(resumed)

    def is_due(self, step: int) -> bool:
        return self.latest is None

    def write(self, step: int, fill: Callable[[Path], None]) -> None:
        (self._folder / str(step)).mkdir(parents=True)
        fill(self._folder / str(step))
