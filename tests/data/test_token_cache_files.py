"""Files of cached tokens: damaged ones, folders that cannot be written, two writers, and which are removed."""

from __future__ import annotations

import logging
import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cached_tokens import EXAMPLES, FEW, TASK, files, keep_everything, lock_up, make

from nlora.data import token_cache
from nlora.data.task import TokenizedExample
from nlora.runs.atomic import TEMPORARY

WEEK_SECONDS = 7 * 86_400


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return keep_everything(tmp_path / "cache", monkeypatch)


# Damaged files


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how in ("first", "middle"):
        changed = bytearray(content)
        changed[len(content) // 2 if how == "middle" else 0] ^= 1
        path.write_bytes(changed)
    elif how == "foreign":
        np.savez(path, prompt_ids=[1], answer_ids=[1])
    else:
        path.write_bytes({"empty": b"", "short": content[:20], "cut": content[:-100]}[how])


@pytest.mark.parametrize("how", ["first", "middle", "foreign", "empty", "short", "cut"])
def test_damaged_files_are_replaced(
    bpe: Any, folder: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = make(bpe, cached=False).encode(TASK, FEW)
    make(bpe).encode(TASK, FEW)
    (path,) = folder.iterdir()
    whole = path.read_bytes()
    damage(path, how)
    assert path.read_bytes() != whole
    assert list(make(bpe).encode(TASK, FEW)) == expected
    assert path.read_bytes() == whole
    later = make(bpe)
    lock_up(later, monkeypatch)
    assert list(later.encode(TASK, FEW)) == expected


def test_rows_outlive_their_file(bpe: Any, folder: Path) -> None:
    expected = make(bpe).encode(TASK, EXAMPLES)
    rows = make(bpe).encode(TASK, EXAMPLES)
    for path in folder.iterdir():
        path.unlink()
    assert list(rows) == list(expected)


@pytest.mark.parametrize("obstacle", ["cache", "tokens", "file"])
def test_a_folder_that_cannot_be_written_is_not_an_error(
    bpe: Any, folder: Path, obstacle: str, caplog: pytest.LogCaptureFixture
) -> None:
    if obstacle == "file":  # a folder in the place of the file
        make(bpe).encode(TASK, FEW)
        (path,) = folder.iterdir()
        path.unlink()
        path.mkdir()
    else:
        blocked = folder if obstacle == "tokens" else folder.parent
        blocked.parent.mkdir(parents=True, exist_ok=True)
        blocked.write_text("not a folder")
    encoder = make(bpe)
    expected = make(bpe, cached=False).encode(TASK, FEW)
    with caplog.at_level(logging.INFO, "nlora"):
        assert list(encoder.encode(TASK, FEW)) == expected
        assert list(encoder.encode(TASK, FEW)) == expected
    (line,) = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert line.startswith(str(folder))
    assert line.endswith("tokens are not cached for later runs")
    assert obstacle != "file" or files(folder) == [path.name]


def test_a_full_disk_leaves_nothing(bpe: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    assert list(make(bpe).encode(TASK, FEW)) == make(bpe, cached=False).encode(TASK, FEW)
    assert files(folder) == []


def test_concurrent_writers_leave_one_whole_file_that_a_third_process_reads(
    tiny_model: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nlora.models.backbone import load_tokenizer

    model = tiny_model("llama")
    here = load_tokenizer(str(model))
    expected = make(here, cached=False).encode(TASK, EXAMPLES)
    context = multiprocessing.get_context("spawn")
    with context.Pool(2, _same_start, (context.Barrier(2),)) as pool:
        results = pool.map(_race, [str(model)] * 2, chunksize=1)
    assert results == [expected, expected]
    (name,) = files(folder)
    assert name.endswith(".npz")
    reader = make(here)
    lock_up(reader, monkeypatch)
    assert list(reader.encode(TASK, EXAMPLES)) == expected


_barrier: Any = None


def _same_start(barrier: Any) -> None:
    global _barrier
    _barrier = barrier


def _race(model: str) -> list[TokenizedExample]:
    from nlora.models.backbone import load_tokenizer

    encoder = make(load_tokenizer(model))
    token_cache.LEAST_CHARACTERS = 1
    _barrier.wait(60)
    return list(encoder.encode(TASK, EXAMPLES))


# Which files are removed


def age(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


def test_the_least_recently_used_files_are_removed(
    bpe: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths: list[Path] = []
    for count in (10, 20, 30, 40):
        make(bpe).encode(TASK, FEW[:count])
        paths += [path for path in folder.iterdir() if path not in paths]
    oldest, older, used, newest = paths
    for weeks, path in zip((5, 4, 3, 2), paths, strict=True):
        age(path, weeks * WEEK_SECONDS)
    make(bpe).encode(TASK, FEW[:30])  # a hit is a use
    assert time.time() - used.stat().st_mtime < 3600
    # Enough for the three that stay and the one to come, but not for one more.
    stay_bytes = sum(path.stat().st_size for path in (older, used, newest))
    monkeypatch.setattr(token_cache, "LIMIT_BYTES", stay_bytes + older.stat().st_size)
    make(bpe).encode(TASK, FEW[:11])
    assert not oldest.exists()
    assert older.exists()
    assert used.exists()
    assert newest.exists()


def test_unfinished_files_of_killed_processes_are_removed_once_they_are_old(bpe: Any, folder: Path) -> None:
    folder.mkdir(parents=True)
    stale, fresh, other = folder / f"{TEMPORARY}1", folder / f"{TEMPORARY}2", folder / "notes.txt"
    for path in (stale, fresh, other):
        path.write_text("half")
    age(stale, 2 * WEEK_SECONDS)
    age(other, 2 * WEEK_SECONDS)
    make(bpe).encode(TASK, FEW)
    assert not stale.exists()
    assert fresh.exists()
    assert other.exists()
