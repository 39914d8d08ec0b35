"""Files that are there whole or not at all, whatever kills the process.

    write_json(folder / "summary.json", {"schema": 1})

A file is written under a temporary name beside its own, flushed to the disk and renamed, which the file
system does in one step. A whole folder is published in the same way. What a killed process left has a name
that begins with `.tmp-`, and `sweep` removes it.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nlora.errors import RunError

TEMPORARY = ".tmp-"
"""What temporary names begin with."""


DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO})
"""What only a disk says, whatever was being done."""


@contextmanager
def disk_errors(path: Path, only: Collection[int] | None = None) -> Iterator[None]:
    """Turn what the operating system refuses (no space, no permission, ...) into one line that names `path`.

    only: the error numbers that are meant; None: all of them.
    """
    try:
        yield
    except OSError as error:
        # Without a number it is not of the operating system, but an exception of ours or of a library's.
        if error.errno is None or (only is not None and error.errno not in only):
            raise
        way_out = (
            "make room there, or give another place" if error.errno in DISK_FULL else "give another place"
        )
        raise RunError(f"{path}: cannot be written: {refusal(path, error)}; {way_out}") from error


def refusal(path: Path, error: OSError) -> str:
    """What the operating system says; in plainer words where a folder is missing or a link points to nothing."""
    if path.is_symlink() and not path.exists():
        return f"it points to {path.readlink()}, which is not there"
    if error.errno == errno.ENOENT and not path.parent.exists():
        return f"there is no folder {path.parent}"
    return error.strerror or str(error)


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text` in UTF-8: readers see the old file or the new one, never a part.

    A link stays one: what it points to is replaced.

    Raises RunError when it cannot be written; the old file is then still there.
    """
    path = path.resolve() if path.is_symlink() else path
    temporary = path.with_name(f"{TEMPORARY}{path.name}")
    with disk_errors(path):
        try:
            with temporary.open("w", encoding="utf-8", newline="\n") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        _sync(path.parent)


def write_json(path: Path, values: dict[str, Any]) -> None:
    """`write_text` of `values` as JSON, keys in their order, indented by four as released."""
    write_text(path, json.dumps(values, indent=4, ensure_ascii=False, allow_nan=False) + "\n")


def publish_folder(temporary: Path, final: Path) -> None:
    """Give a finished folder its name, in one step, after everything in it has reached the disk.

    Raises RunError when `final` is there already or the disk refuses.
    """
    if final.exists():
        raise RunError(f"{final}: is there already; delete it to write it again")
    with disk_errors(final):
        flush_folder(temporary)
        temporary.rename(final)
        _sync(final.parent)


def flush_folder(folder: Path) -> None:
    """Wait until everything in a folder has reached the disk."""
    for parent, _, names in os.walk(folder):
        for name in names:
            _sync(Path(parent, name))
        _sync(Path(parent))


def sweep(folder: Path, keep: Path | None = None) -> None:
    """Remove what killed processes left under temporary names in `folder` (not below it); all but `keep`."""
    if not folder.is_dir():
        return
    with disk_errors(folder):
        for entry in folder.iterdir():
            if entry.name.startswith(TEMPORARY) and entry != keep:
                remove(entry)


def remove(path: Path) -> None:
    """Remove a file, or a folder with everything in it, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, has reached the disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows cannot open folders, and renames there are durable without it
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
