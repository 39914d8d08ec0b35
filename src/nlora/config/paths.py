"""Paths that users write: what can be none is a mistake, and looking for one never fails.

>>> path_problem("~no-such-user/rows.jsonl")
"there is no user 'no-such-user'; write ./~no-such-user/rows.jsonl if ~ is part of the name"
>>> is_file("x" * 300)
False
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

_MOST_BYTES = 255
"""The longest name of a file or folder on all common file systems."""


def path_problem(text: str) -> str | None:
    """Why no file can have this path; None if one can."""
    if "\0" in text:
        return "has a NUL character (\\0) in it, which no path may have"
    if text.startswith("~") and os.path.expanduser(text) == text:  # noqa: PTH111 (Path raises an error)
        user = text[1:].partition("/")[0]
        return f"there is no user '{user}'; write ./{text} if ~ is part of the name"
    longest = max(len(part.encode("utf-8", "surrogatepass")) for part in text.split("/"))
    if longest > _MOST_BYTES:
        return f"has a name of {longest} bytes in it; file systems take at most {_MOST_BYTES}"
    return None


def at_home(text: str) -> str:
    """The text with a leading `~` replaced by the home folder, where there is one."""
    return os.path.expanduser(text)  # noqa: PTH111 (Path raises an error for an unknown user)


def expanded(path: str | os.PathLike[str]) -> Path:
    """The path with `~` replaced by the home folder, where there is one."""
    return Path(at_home(os.fspath(path)))


def found_in(
    folders: Iterable[Path], path: str | os.PathLike[str], kind: Callable[[Path], bool] | None = None
) -> Path | None:
    """The first of the folders' files with this path; None if none has it. kind: `is_file` if None, or `is_folder`."""
    is_there = kind or is_file
    return next((folder / expanded(path) for folder in folders if is_there(folder / expanded(path))), None)


def looked_in(folders: Iterable[Path], path: str | os.PathLike[str]) -> str:
    """` (looked in /a and /b)`, for the message about a path that none has; empty for an absolute path."""
    if expanded(path).is_absolute():
        return ""
    return f" (looked in {' and '.join(dict.fromkeys(str(folder.resolve()) for folder in folders))})"


HomePath = Annotated[str, AfterValidator(at_home)]
"""The type of a key whose path is used as it is read, by other libraries too."""


def exists(path: str | Path) -> bool:
    """Whether there is anything; False for what can be no path, for which Path.exists raises an error."""
    return os.path.exists(path)  # noqa: PTH110


def is_file(path: str | Path) -> bool:
    """As `exists`, of files only."""
    return os.path.isfile(path)  # noqa: PTH113


def is_folder(path: str | Path) -> bool:
    """As `exists`, of folders only."""
    return os.path.isdir(path)  # noqa: PTH112
