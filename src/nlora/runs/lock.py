"""Who writes into a run's folder: a lock of the operating system, which dies with the process that has it.

lock = held_lock(folder)         # RunError where another process has it
is_held(folder)                  # True until lock.release(), or the end of the process
"""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock, Timeout

from nlora.errors import RunError

LOCK_FILE = ".lock"
_PATIENCE_SECONDS = 0.2
"""Longer than anybody takes who only asks whether the lock is held, and has it for that time."""


def free_lock(folder: Path) -> FileLock:
    """The folder's lock, not taken."""
    return FileLock(folder / LOCK_FILE, thread_local=False)


def held_lock(folder: Path) -> FileLock:
    """The folder's lock, taken. Raises RunError where another run has it."""
    lock = free_lock(folder)
    try:
        lock.acquire(timeout=_PATIENCE_SECONDS, poll_interval=_PATIENCE_SECONDS / 10)
    except Timeout as error:
        raise RunError(
            f"{folder}: another run is writing there now; wait for it, or give another output_dir"
        ) from error
    return lock


def is_held(folder: Path) -> bool | None:
    """Whether a process writes there now; None where that cannot be tried, as in a folder that is somebody else's."""
    if not (folder / LOCK_FILE).exists():
        return False
    lock = free_lock(folder)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    except OSError:
        return None
    lock.release()
    return False
