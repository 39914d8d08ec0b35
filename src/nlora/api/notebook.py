"""Progress in a notebook: one output that is updated in place. Needs no ipywidgets."""

from __future__ import annotations

import sys
import time
from html import escape
from typing import Any

from nlora.runs.events import Event, OnEvent

_SECONDS_BETWEEN_UPDATES = 0.1


def notebook_bar() -> OnEvent | None:
    """A function that shows events below the current cell; None outside of Jupyter."""
    ipython: Any = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return _NotebookBar(ipython.display.display) if hasattr(shell, "kernel") else None


class _NotebookBar:
    """A line for each note and each finished stage, and below them the bar of what is running."""

    def __init__(self, display: Any) -> None:
        self._display, self._handle = display, None
        self._lines: list[str] = []
        self._updated = 0.0

    def __call__(self, event: Event) -> None:
        if event.kind in ("note", "stage_done"):
            self._lines.append(str(event))
            self._show(None)
        elif event.done >= event.total:
            self._show(None)
        elif not event.done or time.monotonic() - self._updated > _SECONDS_BETWEEN_UPDATES:
            self._show(event)

    def _show(self, running: Event | None) -> None:
        self._updated = time.monotonic()
        lines = self._lines if running is None else [*self._lines, str(running)]
        html = f"<pre>{escape(chr(10).join(lines))}</pre>" if lines else ""
        if running is not None:
            html += f'<progress style="width: 30em" value="{running.done}" max="{running.total}"></progress>'
        output = {"text/plain": "\n".join(lines), "text/html": html}
        if self._handle is None:
            self._handle = self._display(output, raw=True, display_id=True)
        else:
            self._handle.update(output, raw=True)
