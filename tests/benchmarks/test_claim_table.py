"""benchmarks/claim.py: do methods whose updates collide more forget more? Its numbers, computed another way."""

from __future__ import annotations

import importlib
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
RUNS = FOLDER / "results" / "choosing_short.jsonl"


@pytest.fixture
def claim(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("claim")


def test_correlations_are_those_of_what_a_regression_leaves(
    claim: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The partial correlation is that of the residuals of two least-squares fits."""
    runs = [json.loads(line) for line in RUNS.read_text().splitlines()]
    of_methods: dict[str, list[tuple[float, float, float]]] = {}
    for run in (run for run in runs if "summary" in run and run["update"] is not None):
        summary = run["summary"]
        kept = summary.get("replay") or summary.get("serve") or summary["method"] in ("replay", "pertask")
        if not kept and "backward_transfer" in summary:
            point = run["collisions"], run["update"], -summary["backward_transfer"]
            of_methods.setdefault(summary["name"], []).append(point)
    monkeypatch.setattr(sys, "argv", ["claim.py", str(RUNS)])
    claim.main()
    cells = [cell.strip() for cell in capsys.readouterr().out.splitlines()[2].split("|")[1:-1]]
    assert cells[:2] == ["all", str(len(of_methods))]

    collisions, size, lost = np.array([np.mean(points, axis=0) for points in of_methods.values()]).T
    size = np.array([math.log(value) for value in size])

    def left(values: np.ndarray, known: np.ndarray) -> np.ndarray:
        columns = np.stack([known, np.ones_like(known)], axis=1)
        residuals: np.ndarray = values - columns @ np.linalg.lstsq(columns, values)[0]
        return residuals

    centered = [
        np.array(points) - np.mean(points, axis=0) for points in of_methods.values() if len(points) > 1
    ]
    of_seeds = np.concatenate(centered)
    expected = (
        (collisions, lost),
        (size, lost),
        (left(collisions, size), left(lost, size)),
        (left(size, collisions), left(lost, collisions)),
        (of_seeds[:, 0], of_seeds[:, 2]),
    )
    for cell, (x, y) in zip(cells[2:], expected, strict=True):
        r, low, high = (
            float(part) for part in cell.replace("(", "").replace(")", "").replace("to", "").split()
        )
        assert r == pytest.approx(np.corrcoef(x, y)[0, 1], abs=0.0051)
        assert -1 <= low < r < high <= 1


def test_size_that_explains_everything_leaves_nothing_to_collisions(claim: Any) -> None:
    """Where both follow size, they are correlated, and not any more at equal size."""
    noise = np.random.default_rng(0).normal(size=(2, 1000))
    size = np.linspace(0, 5, 1000)
    collisions, lost = size + noise[0], size + noise[1]
    assert claim.pearson(collisions, lost) > 0.6
    assert abs(claim.partial(collisions, lost, size)) < 0.1
    assert claim.partial(size, lost, collisions) > 0.4
    assert claim.shown(size[:4], lost[:4]) == "-"


def test_runs_of_a_method_are_no_independent_points(claim: Any) -> None:
    """Each run counted twice is nothing new: neither a correlation nor its interval changes."""
    (of_methods,) = claim.by_length(claim.read_runs(RUNS)).values()
    assert claim.row("all", of_methods) == claim.row("all", [points * 2 for points in of_methods])
    last = claim.row("all", of_methods[: claim.FEWEST - 1]).split("|")[-2]
    assert last.strip() == "-"


def test_lengths_of_training_are_told_apart_and_drawn(claim: Any, tmp_path: Path) -> None:
    found = claim.by_length(claim.read_runs(FOLDER / "results" / "choosing_claim.jsonl"))
    assert list(found) == sorted(found, key=int)
    for of_methods in found.values():
        names = {points[0].name for points in of_methods}
        assert len(names) == len(of_methods)
        assert {"inclora", "disjoint"} <= names
    claim.draw(found, tmp_path / "claim.png")
    assert (tmp_path / "claim.png").read_bytes().startswith(b"\x89PNG")
