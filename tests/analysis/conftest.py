"""Fixtures for the tests of `nlora analyze`: calling it, and two adapters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from nlora.cli import app
from states import SHAPES, random_state, write_adapter

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def nlora(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """nlora("analyze", ...) -> exit status, what was printed, errors."""
    monkeypatch.setenv("COLUMNS", "80")

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["nlora", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            app.main()
        printed = capsys.readouterr()
        return int(stop.value.code or 0), printed.out, printed.err

    return call


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    return [write_adapter(tmp_path / f"{n}-task" / "adapter", random_state(SHAPES, 2, n)) for n in (1, 2)]
