"""What stops a process, as exceptions, so that it cleans up, says what it keeps, and saves a half-trained task first.

SIGINT comes from Ctrl-C, SIGTERM from schedulers and `kill`, SIGHUP from a terminal that closes, and SIGUSR1 from Slurm
some time before it ends a job (`--signal`).
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

from nlora.models.processes import is_main, largest
from nlora.models.stopping import stop_together

_STOPPING = ("SIGTERM", "SIGHUP", "SIGUSR1")  # Windows has only the first


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


@contextlib.contextmanager
def stopped_like_ctrl_c() -> Iterator[None]:
    """In this block SIGTERM, SIGHUP and SIGUSR1 raise KeyboardInterrupt, as Ctrl-C does.

    Handlers already set are kept. nohup ignores SIGHUP, and that stays.
    """
    with _handled(_STOPPING, _interrupt, instead_of=(signal.SIG_DFL,)):
        yield


class StopRequest:
    """Whether the process was asked to stop."""

    def __init__(self) -> None:
        self.is_made = False


@contextlib.contextmanager
def stopped_on_request() -> Iterator[StopRequest]:
    """In this block the first signal that would stop the process is a request. Ctrl-C after it stops at once.

    After Ctrl-C any other signal does so, too: a launcher passes a second Ctrl-C on as SIGTERM. After the others they
    are the same request once more: whoever stops a job, as Slurm does, signals all of its processes, and each of those
    passes it on to the ones that it started.

    A request that is still open at the end of the block raises KeyboardInterrupt there, in all processes that share a
    run. Foreign handlers are kept. In threads other than the main one, which cannot handle signals, no request is ever
    made.
    """
    request = StopRequest()
    ctrl_c, others = contextlib.ExitStack(), contextlib.ExitStack()

    def ask(number: int, frame: FrameType | None) -> None:
        request.is_made = True
        ctrl_c.close()  # the next one is handled as it was before the block
        if number == signal.SIGINT:
            others.close()
            if is_main():  # not print: the signal may have interrupted one
                os.write(2, b"\nstopping after this step; Ctrl-C again stops at once\n")

    own = (signal.SIG_DFL, signal.default_int_handler, _interrupt)
    with ctrl_c, others:
        ctrl_c.enter_context(_handled(("SIGINT",), ask, instead_of=own))
        others.enter_context(_handled(_STOPPING, ask, instead_of=own))
        yield request
    if any(largest(request.is_made)):
        stop_together()


@contextlib.contextmanager
def _handled(names: tuple[str, ...], handler: Any, instead_of: tuple[Any, ...]) -> Iterator[None]:
    """A block in which a handler takes the place of some other ones."""
    before = {}
    if threading.current_thread() is threading.main_thread():  # only it may set handlers
        for name in names:
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) in instead_of:
                before[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)
