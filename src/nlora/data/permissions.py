"""Who may read what was written: others too, as far as the umask says, like any new file."""

from __future__ import annotations

import os
from pathlib import Path


def open_to_others(folder: Path) -> None:
    """Give a folder and all in it the permissions of new files.

    A temporary folder and what safetensors writes are their owner's alone, so a server of another user could not read
    an export, and a second user not the cache.
    """
    mask = os.umask(0)
    os.umask(mask)
    for path in (folder, *folder.rglob("*")):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)
