"""benchmarks/interference.py shows the figures of the runs' own analyses, averaged over seeds."""

from __future__ import annotations

import importlib
import statistics
import sys
from pathlib import Path
from typing import Any

import pytest

from nlora.analysis.of_run import analyze_run
from nlora.runs.summary import read_summary, write_summary
from states import write_run

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("interference")


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_table_is_made_of_the_runs_analyses(
    table: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("small-seed1", "small-seed2"):
        write_run(tmp_path / name)
    (tmp_path / "nothing yet").mkdir()
    monkeypatch.setattr(sys, "argv", ["interference.py", str(tmp_path), "--reference", "small"])
    table.main()
    lines = capsys.readouterr().out.splitlines()
    own = analyze_run(tmp_path / "small-seed1")
    assert lines[0] == f"common threshold {own.threshold:.3g}"
    header, row = cells(lines[1]), cells(lines[3])
    found = dict(zip(header, row, strict=True))
    assert (found["run"], found["seeds"]) == ("small", "2")
    assert found["just learned"] == f"{statistics.mean([90, 80, 50]):.1f}"
    rate = 100 * own.average_collision_rate
    assert float(found["collisions, common threshold, %"]) == pytest.approx(rate, abs=0.005)
    energy = statistics.mean(pair.overlap_energy for pair in own.pairs.values())
    assert float(found["overlap energy"]) == pytest.approx(energy, abs=0.0005)
    assert any("over all pairs of all runs" in line and "n = 6" in line for line in lines[4:])


@pytest.mark.parametrize("serve", ["pertask", "routed"])
def test_updates_that_are_not_served_together_are_not_correlated(
    table: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    serve: str,
) -> None:
    """The same run whose every task has a model of its own: a row more, the same correlations."""
    monkeypatch.setattr(sys, "argv", ["interference.py", str(tmp_path), "--reference", "small"])

    def printed() -> tuple[list[str], list[str]]:
        table.main()
        lines = capsys.readouterr().out.splitlines()
        rows = [line for line in lines[3:] if line.startswith("|")]
        return rows, lines[3 + len(rows) :]

    for name in ("one", "two"):
        write_run(tmp_path / name)
    rows, correlations = printed()
    assert correlations
    write_run(tmp_path / "apart")
    summary = read_summary(tmp_path / "apart")
    write_summary(tmp_path / "apart", summary.model_copy(update={"name": "apart", "serve": serve}))
    more, same = printed()
    assert len(more) == len(rows) + 1
    assert same == correlations


def test_a_reference_that_is_no_run_is_told(
    table: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "one")
    monkeypatch.setattr(sys, "argv", ["interference.py", str(tmp_path)])
    with pytest.raises(SystemExit):
        table.main()
    assert "no finished run is called inclora" in capsys.readouterr().err
