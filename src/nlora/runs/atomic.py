"""Atomic writes: a file or folder is complete or absent, whatever kills the process.

A file is written under a temporary name in the same folder, flushed to the disk and renamed, which file systems do in
one step. A folder is published the same way. Temporary names begin with `.tmp-`; `sweep` removes the leftovers of a
killed process.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nlora.errors import RunError, system_error
from nlora.runs.layout import TEMPORARY

DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG})
"""Errors that only a disk raises, whatever the process was doing."""


@contextmanager
def disk_errors(path: Path, only: Collection[int] | None = None) -> Iterator[None]:
    """Turn an error of the operating system (no space, no permission, ...) into a RunError that names `path`.

    only: the error numbers to convert; None: all.
    """
    try:
        yield
    except Exception as error:
        # An OSError without a number was raised by a library or by nlora, not by the system.
        number = system_error(error)
        if number is None or (only is not None and number not in only):
            raise
        has_no_space = number in DISK_FULL - {errno.EROFS}
        way_out = f"{'free some space, or ' if has_no_space else ''}choose another place"
        raise RunError(f"{path}: cannot be written: {refusal(path, error)}; {way_out}") from error


def refusal(path: Path, error: Exception) -> str:
    """The reason of an error of the system, in plain words for a missing folder or a broken link."""
    if path.is_symlink() and not path.exists():
        return f"it is a link to {path.readlink()}, which does not exist"
    number = system_error(error)
    if number == errno.ENOENT and not path.parent.exists():
        return f"there is no folder {path.parent}"
    return str(error) if number is None else os.strerror(number)


def write_text(path: Path, text: str) -> None:
    """Replace the contents of `path` with `text`; see `write_lines`."""
    write_lines(path, [text])


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Replace the contents of `path` in UTF-8. Readers see the old file or the new one, never a part.

    lines: with their line breaks. They are written as they come, so that a large file is never in memory as a whole.

    If `path` is a link, the file it points to is replaced. Raises RunError if it cannot be written, and then the old
    file is unchanged.
    """
    write_bytes(path, (line.encode() for line in lines))


def write_bytes(path: Path, parts: Iterable[bytes]) -> None:
    """As `write_lines`, of a file that is no text."""
    with disk_errors(path):
        if path.exists() and not path.is_file():  # a device or a pipe: no file may take its place
            with path.open("wb") as stream:
                stream.writelines(parts)
            return
    with disk_errors(path):
        try:
            path = path.resolve() if path.is_symlink() else path
        except RuntimeError as error:  # of Python before 3.13
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path)) from error
    # The process in the name: of two that write the same file, each publishes its own.
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}")
    with disk_errors(path):
        try:
            with temporary.open("wb") as file:
                file.writelines(parts)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        _sync(path.parent)


def write_json(path: Path, values: dict[str, Any]) -> None:
    """`write_text` of `values` as JSON, in the order of the keys, indented by four as in the released files."""
    write_text(path, json.dumps(values, indent=4, ensure_ascii=False, allow_nan=False) + "\n")


def publish_folder(temporary: Path, final: Path) -> None:
    """Rename a finished folder in one step, after everything in it has reached the disk.

    Raises RunError if `final` exists already or the disk refuses.
    """
    if final.exists():
        raise RunError(f"{final}: exists already; delete it to write it again")
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


def sweep(folder: Path, keep: Collection[Path] = ()) -> None:
    """Remove the leftovers of killed processes directly in `folder`, except those to keep."""
    if not folder.is_dir():
        return
    with disk_errors(folder):
        for entry in folder.iterdir():
            if entry.name.startswith(TEMPORARY) and entry not in keep:
                remove(entry)


def remove(path: Path) -> None:
    """Remove a file, or a folder with its contents, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Wait until a file, or the entries of a folder, have reached the disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows cannot open folders, and renames there are durable without it
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
