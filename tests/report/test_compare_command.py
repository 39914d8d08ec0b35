"""The command `nlora compare`: formats, files, exit status."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path

import pytest
from compared_runs import run

from nlora.cli import app
from nlora.cli.compare import compare
from nlora.errors import InputErrors, NloraError


def test_out_writes_the_format_of_its_suffix(tmp_path: Path) -> None:
    folder = str(run(tmp_path / "1"))
    heads = {"md": "| run |", "tex": "% needs", "csv": "run,method", "txt": " run "}
    for suffix, head in heads.items():
        out = tmp_path / f"table.{suffix}"
        compare([folder], out=str(out))
        assert out.read_text(encoding="utf-8").startswith(head)
    compare([folder], "csv", str(tmp_path / "table.md"))
    assert (tmp_path / "table.md").read_text().startswith("run,method")
    for out in (tmp_path, tmp_path / "no" / "table.md"):
        with pytest.raises(NloraError, match=r"--out: .*(is a folder|no folder)"):
            compare([folder], out=str(out))
    with pytest.raises(InputErrors, match="did you mean 'markdown'"):
        compare([folder], "markdwn")


def test_a_run_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was left out, so that the averages were over fewer seeds."""
    for seed in (1, 2):
        run(tmp_path / f"seed{seed}", seed=seed)
    closed, access = tmp_path / "seed1", os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != closed and access(path, mode))
    with pytest.raises(NloraError, match=r"seed1: Permission denied, and it may be a run; name the runs"):
        compare([str(tmp_path)])
    compare([str(tmp_path / "seed2")])


def test_exit_status_and_output_of_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    folder = run(tmp_path / "1")

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["nlora", "compare", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            app.main()
        printed = capsys.readouterr()
        return int(stop.value.code or 0), printed.out, printed.err

    status, out, _ = call(folder)
    assert (status, "65.0" in out) == (0, True)
    status, out, _ = call(tmp_path, "--format", "csv")
    assert next(csv.DictReader(io.StringIO(out)))["average_accuracy_mean"] == "65.0"
    status, _, err = call(folder, tmp_path / "nowhere")
    assert (status, len(err.strip().splitlines())) == (2, 1)
