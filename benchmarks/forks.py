"""Processes that are forks of this one, so that they need not import anything again: one, or a group that shares a run.

A group is started and ended as a launcher does it: torchrun's variables, and SIGTERM for the others if one fails.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

from nlora.models import processes

GRACE_SECONDS = 60
"""What processes that another one waits for may take to end."""


def forked(work: Callable[[], Any]) -> int:
    """The exit status of a process that does this, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(_fork(work), 0)[1])


def group(size: int, work: Callable[[int], Any], *, notice_seconds: float = 0.0) -> list[int]:
    """The exit statuses, as of `forked`, of processes that share a run; each does `work` with its rank.

    notice_seconds: how long the others may go on without one that has failed.

    Raises TimeoutError if the others do not end.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}

    def of_rank(rank: int) -> Callable[[], Any]:
        def share() -> None:
            own = {"RANK": rank, "LOCAL_RANK": rank} | common if size > 1 else {}
            os.environ.update({name: str(value) for name, value in own.items()})
            work(rank)

        return share

    left = {_fork(of_rank(rank)): rank for rank in range(size)}
    statuses: dict[int, int] = {}
    failed_at: float | None = None
    is_told = False
    while left:
        for pid in list(left):
            ended, status = os.waitpid(pid, os.WNOHANG if size > 1 else 0)
            if ended:
                statuses[left.pop(pid)] = os.waitstatus_to_exitcode(status)
        if failed_at is None and any(statuses.values()):
            failed_at = time.monotonic()
        waited = 0.0 if failed_at is None else time.monotonic() - failed_at
        if failed_at is not None and not is_told and waited >= notice_seconds:
            is_told = True
            _send(signal.SIGTERM, left)
        if waited > GRACE_SECONDS:
            _send(signal.SIGKILL, left)
            raise TimeoutError(f"processes {sorted(left.values())} went on when another one had ended")
        time.sleep(0.01)
    return [statuses[rank] for rank in range(size)]


def _send(number: signal.Signals, running: dict[int, int]) -> None:
    for pid in running:  # not waited for yet, so it is ours
        os.kill(pid, number)


def _fork(work: Callable[[], Any]) -> int:
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        work()
        status = 0
    except BaseException as error:
        if not processes.lost_process(error):  # as is to be expected if another one is killed
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
    finally:
        sys.stderr.flush()
        os._exit(status)
