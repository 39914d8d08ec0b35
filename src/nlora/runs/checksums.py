"""SHA-256 of the files of a stage that later steps depend on: its weights, its record, its answers.

They are in the stage's checksums.json, which is written before the stage is committed. Whoever reads one of the files
to go on from it compares them, so that a cut or edited file is not taken for what was trained. A stage without
checksums.json (from an older version, or after a user deleted it) is taken as it is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nlora.errors import RunError, to_repair
from nlora.runs.atomic import write_json
from nlora.runs.layout import (
    MEMORY_FILE,
    PREDICTIONS_FILE,
    STAGE_FILE,
    TEMPORARY,
    TRAINED_FILE,
    WEIGHTS_TRIED_FILE,
)

CHECKSUM_FILE = "checksums.json"

Part = Literal["weights", "scores"]
"""weights: what was trained, with what the method remembers. scores: the stage's record and its answers."""
_SCORES = frozenset({STAGE_FILE, PREDICTIONS_FILE})
_FOR_READERS = frozenset(
    {
        CHECKSUM_FILE,
        TRAINED_FILE,
        "trainer_state.json",
        "train_results.json",
        "predict_results.json",
        "all_results.json",
        WEIGHTS_TRIED_FILE,
    }
)
"""Files that nothing is trained or scored from."""


class FileSum(BaseModel):
    """One file."""

    model_config = ConfigDict(frozen=True)

    sha256: str
    bytes: int = Field(ge=0)


class Checksums(BaseModel):
    """The contents of checksums.json.

    files: by path within the stage's folder. after: `weights_digest` of the stage before, on top of which this one
    was trained; None if unknown, and at the first stage.
    """

    model_config = ConfigDict(frozen=True)

    files: dict[str, FileSum]
    after: str | None = None


@dataclass(frozen=True, slots=True)
class Damage:
    """A file of a stage that is not as it was written. what: how it differs, in words."""

    path: Path
    part: Part
    what: str

    def __str__(self) -> str:
        return f"{self.path}: {self.what}; {to_repair('trained' if self.part == 'weights' else 'scored')}"


def write_checksums(folder: Path, after: str | None = None) -> None:
    """Write a stage's checksums.json before it is committed. Sums of its weights that are there already are kept.

    So are those of a memory that a later stage let go: it is part of what that one was trained on top of.
    """
    known = read_checksums(folder)
    kept = {} if known is None else {name: s for name, s in known.files.items() if _part(name) == "weights"}
    files = kept | {name: _sum(folder / name) for name in _names(folder) if name not in kept}
    sums = Checksums(files=files, after=after or (known and known.after))
    write_json(folder / CHECKSUM_FILE, sums.model_dump(mode="json"))


def read_checksums(folder: Path) -> Checksums | None:
    """A stage's checksums; None if it has none. Raises RunError if the file is broken or cannot be read."""
    path = folder / CHECKSUM_FILE
    try:
        return Checksums.model_validate_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error.strerror}") from error
    except ValidationError as error:
        raise RunError(f"{path}: broken; delete it to take the stage's files as they are") from error


def weights_digest(folder: Path) -> str | None:
    """A digest of the weights of a stage and of all stages before it; None without checksums."""
    sums = read_checksums(folder)
    if sums is None:
        return None
    weights = sorted((name, s.sha256) for name, s in sums.files.items() if _part(name) == "weights")
    return hashlib.sha256(json.dumps([sums.after, weights]).encode()).hexdigest()


def damage(folder: Path, *, is_last: bool) -> list[Damage]:
    """The files of a stage that are missing or changed.

    is_last: whether no later stage is committed; only then the method's memory is still needed.
    Raises RunError for a file without permission to read it, which may be whole.
    """
    sums = read_checksums(folder)
    if sums is None:
        return []
    files = sums.files.items()
    return [
        found for name, s in files if (is_last or name != MEMORY_FILE) for found in _damage(folder, name, s)
    ]


def damaged_weights(folder: Path) -> list[Damage]:
    """The files that a stage was trained to and that are missing or changed; without its memory."""
    return [found for found in damage(folder, is_last=False) if found.part == "weights"]


def refuse_damaged_weights(folder: Path) -> None:
    """Raise RunError if a file that a stage was trained to is missing or changed."""
    for found in damaged_weights(folder):
        raise RunError(str(found))


def refuse_damaged_file(path: Path) -> None:
    """Raise RunError if a file directly in a stage's folder is missing or changed. Other folders have no checksums."""
    sums = read_checksums(path.parent)
    if sums is not None and (known := sums.files.get(path.name)) is not None:
        for found in _damage(path.parent, path.name, known):
            raise RunError(str(found))


def _damage(folder: Path, name: str, known: FileSum) -> Iterator[Damage]:
    path = folder / name
    try:
        size = path.stat().st_size
        if size != known.bytes:
            what = f"has {size:,} bytes, but {known.bytes:,} were written"
        elif _sum(path) != known:
            what = f"was changed after it was written (its SHA-256 is not the one in {CHECKSUM_FILE})"
        else:
            return
    except FileNotFoundError:
        what = "is missing"
    except PermissionError as error:
        raise RunError(f"{path}: cannot be read: {error.strerror}") from error
    except OSError as error:
        what = f"cannot be read: {error.strerror}"
    yield Damage(path, _part(name), what)


def _names(folder: Path) -> list[str]:
    whole = (path for path in folder.rglob("*") if not path.name.startswith(TEMPORARY))
    files = (path.relative_to(folder) for path in whole if path.is_file())
    return sorted(name.as_posix() for name in files if name.as_posix() not in _FOR_READERS)


def _part(name: str) -> Part:
    return "scores" if name in _SCORES else "weights"


def _sum(path: Path) -> FileSum:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return FileSum(sha256=digest.hexdigest(), bytes=file.tell())
