"""Files are replaced as a whole, whoever else writes them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from nlora.runs.atomic import write_lines, write_text


def test_two_processes_that_write_one_file_each_publish_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second begins and ends while the first is in the middle of its lines."""
    path = tmp_path / "table.md"

    def lines() -> Iterator[str]:
        yield "first, "
        with monkeypatch.context() as other:
            other.setattr(os, "getpid", lambda: 1)
            write_text(path, "second\n")
        assert path.read_text() == "second\n"
        yield "whole\n"

    write_lines(path, lines())
    assert path.read_text() == "first, whole\n"
    assert [file.name for file in tmp_path.iterdir()] == ["table.md"]


def test_a_pipe_is_written_into_and_stays_one(tmp_path: Path) -> None:
    """So does a device; as root, a file could take the place of /dev/null."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_text(pipe, "text")
        assert os.read(reader, 10) == b"text"
    finally:
        os.close(reader)
    assert pipe.is_fifo()
    assert list(tmp_path.iterdir()) == [pipe]
