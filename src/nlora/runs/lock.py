"""The lock of a run's folder. It belongs to the operating system, which releases it when the process ends.

Some network file systems have no such locks. Where the system says that it does not know them at all, filelock takes
a file as the lock, which a killed process may leave behind.
"""

from __future__ import annotations

import errno
import warnings
from pathlib import Path

from filelock import FileLock, Timeout

from nlora.errors import RunError

LOCK_FILE = ".lock"
IN_USE = "in use by another run"
"""What a run says, and nothing else does, if another one holds its folder."""
_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP})
_PATIENCE_SECONDS = 0.2
"""Longer than `is_held` of another process, which holds the lock for a moment to find out whether it is free."""


def free_lock(folder: Path) -> FileLock:
    """The folder's lock, not acquired."""
    return FileLock(folder / LOCK_FILE, thread_local=False)


def held_lock(folder: Path) -> FileLock:
    """The folder's lock, acquired. Raises RunError if another process has it, or the file system has no locks."""
    lock = free_lock(folder)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "flock not supported")  # the lock works, in another way
            lock.acquire(timeout=_PATIENCE_SECONDS, poll_interval=_PATIENCE_SECONDS / 10)
    except Timeout as error:
        killed = f" (if none is active, delete {folder / LOCK_FILE})" if _is_a_file(lock) else ""
        raise RunError(f"{folder}: {IN_USE}; wait for it{killed}, or choose another output_dir") from error
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
            raise
        raise RunError(
            f"{folder}: its file system cannot lock files, so two runs could write there at once; choose an "
            "output_dir on another one, or mount it with locks"
        ) from error
    return lock


def _is_a_file(lock: FileLock) -> bool:
    """Whether filelock has taken a file as the lock: it knows the owner of such a lock only."""
    return hasattr(lock, "pid")


def is_held(folder: Path) -> bool | None:
    """Whether a process is writing there now; None if that cannot be tested, as in somebody else's folder."""
    if not (folder / LOCK_FILE).exists():
        return False
    lock = free_lock(folder)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    except (OSError, NotImplementedError):
        return None
    lock.release()
    return False
