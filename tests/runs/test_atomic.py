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
