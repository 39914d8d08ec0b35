"""All processes of a run stop together, at a step that they agree on, and end once one of them has told why."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import NoReturn

from nlora.models import processes

_stopped = False
_PATIENCE_SECONDS = 10
_MOMENT_SECONDS = 2
"""For processes that found the same before they joined, and so cannot hear of each other."""


def stop_together() -> NoReturn:
    """Raises KeyboardInterrupt in all processes, once each has called it."""
    global _stopped
    processes.barrier()
    _stopped = processes.several()
    raise KeyboardInterrupt


def leave(error: BaseException) -> None:
    """Return once the process that tells about the error has told, which for that process is now.

    If all were stopped together, return once all are here. A launcher ends the others as soon as one has gone.
    """
    first = processes.is_first(error)
    with suppress(Exception, KeyboardInterrupt):
        if _stopped:
            with processes.joined():
                processes.barrier()
        elif not processes.several():
            time.sleep(0 if first else _MOMENT_SECONDS)
        elif first:
            processes.store().set("told", "")
        else:
            end = time.monotonic() + _PATIENCE_SECONDS
            while not processes.store().check(["told"]) and time.monotonic() < end:
                time.sleep(0.01)
