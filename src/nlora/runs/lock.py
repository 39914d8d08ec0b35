"""The lock of a run's folder. It belongs to the operating system, which releases it when the process ends."""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock, Timeout

from nlora.errors import RunError

LOCK_FILE = ".lock"
_PATIENCE_SECONDS = 0.2
"""Longer than `is_held` of another process, which holds the lock for a moment to find out whether it is free."""


def free_lock(folder: Path) -> FileLock:
    """The folder's lock, not acquired."""
    return FileLock(folder / LOCK_FILE, thread_local=False)


def held_lock(folder: Path) -> FileLock:
    """The folder's lock, acquired. Raises RunError if another process has it."""
    lock = free_lock(folder)
    try:
        lock.acquire(timeout=_PATIENCE_SECONDS, poll_interval=_PATIENCE_SECONDS / 10)
    except Timeout as error:
        raise RunError(
            f"{folder}: in use by another run; wait for it, or choose another output_dir"
        ) from error
    return lock


def is_held(folder: Path) -> bool | None:
    """Whether a process is writing there now; None if that cannot be tested, as in somebody else's folder."""
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
