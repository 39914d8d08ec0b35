"""benchmarks/collision.py: its contestants find the same rates, and it runs to its end."""

from __future__ import annotations

import argparse
import importlib
import json
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("collision")


def test_the_contestants_find_the_same(script: Any) -> None:
    states = script.random_states(script.shape_of("3x20x30"), 4, 2)
    rates = {name: compare(states, 3.0) for name, compare in script.CONTESTANTS.items()}
    assert len(rates["plain"]) == 6
    assert 0.05 < rates["plain"]["t0|t1"] < 0.95
    for own in rates.values():
        assert own == pytest.approx(rates["plain"])
    script.check_same(rates)
    with pytest.raises(ValueError, match=r"plain found 0\.5 for t0\|t1"):
        script.check_same({**rates, "plain": {"t0|t1": 0.5}})


def test_names_of_shapes(script: Any) -> None:
    assert script.shape_of("t5-large") == script.Shape(144, 1024, 1024, 15)
    assert script.shape_of("2x30x40") == script.Shape(2, 30, 40, 15)
    for wrong in ("t5", "3x4", "0x8x8", "8x8x"):
        with pytest.raises(argparse.ArgumentTypeError, match=f"'{wrong}' is neither"):
            script.shape_of(wrong)


def test_it_runs_to_its_end(script: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "collision.json"
    script.main(
        [*"--shapes 2x32x16 --adapters 3 --rank 2 --rounds 2 --no-memory --json".split(), str(file)]  # noqa: SIM905
    )
    assert "| adapters | how | seconds | nlora is times as fast |" in capsys.readouterr().out
    (made,) = json.loads(file.read_text())["shapes"]
    assert (made["adapters"], made["pairs"]) == (3, 3)
    assert all(len(seconds) == 2 for seconds in made["seconds"].values())
