"""A comparison of many runs: its work is counted, not timed."""

from __future__ import annotations

from pathlib import Path

import pytest
from compared_runs import run

from nlora.report import comparison, grouping


def test_each_run_is_compared_with_a_row_not_with_all_of_its_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run(tmp_path / "one")
    ((path, first),) = comparison.read_runs([folder])
    seeds = [(path, first.model_copy(update={"seed": seed})) for seed in range(100)]
    names = [(path, first.model_copy(update={"name": f"n{i}"})) for i in range(100)]
    asked = []
    same = grouping.same_setting
    monkeypatch.setattr(grouping, "same_setting", lambda a, b: asked.append(1) or same(a, b))
    assert [row.seeds for row in comparison.compare(seeds).rows] == [tuple(range(100))]
    assert len(asked) == 99
    assert len(comparison.compare(names).rows) == 100
    assert len(asked) == 99
