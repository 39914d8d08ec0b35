"""All processes of a run stop together, at a step that they agree on."""

from __future__ import annotations

from contextlib import suppress
from typing import NoReturn

from nlora.models import processes

_stopped = False


def stop_together() -> NoReturn:
    """Raises KeyboardInterrupt in all processes, once each has called it. They end with `leave`."""
    global _stopped
    processes.barrier()
    _stopped = processes.several()
    raise KeyboardInterrupt


def leave() -> None:
    """If all were stopped together, wait until each has told what it has to.

    A launcher ends the others as soon as one has gone.
    """
    if _stopped:
        with suppress(Exception, KeyboardInterrupt), processes.joined():
            processes.barrier()
