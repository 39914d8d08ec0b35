"""benchmarks/exports.py prints a row for each form of export, with the run's own scores where the form is exact."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from nlora.runs.summary import read_summary

FOLDER = Path(__file__).parents[2] / "benchmarks"


def test_exact_forms_have_the_runs_scores(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setattr(sys, "argv", ["exports.py", "runs/support"])
    importlib.import_module("exports").main()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    found = {row[0].strip("`"): row[2:] for row in rows}
    scores = [f"{score:.1f}" for score in read_summary(here / "runs/support").R[-1] if score is not None]
    for form in ("merged", "adapter", "adapters"):
        assert found[form] == [*scores, "0"]
    assert {"adapter --rank 8", "adapter --rank 4", "merged --merge ties", "0.1", "3"} <= found.keys()
