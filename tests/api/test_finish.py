"""What a finished run leaves beside its stages."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers import learn, write_config
from nlora.analysis.interference import compare_states
from nlora.models.lora_factors import load_factors
from nlora.runs.summary import read_summary

TinyModel = Callable[[str], Path]


def test_a_run_leaves_its_collisions_and_its_page(tmp_path: Path, tiny_model: TinyModel) -> None:
    summary = learn(write_config(tmp_path, tiny_model("llama")))
    run = tmp_path / "run"
    states = {
        task: load_factors(run / "outputs" / f"{k}-{task}" / "adapter")
        for k, task in enumerate(summary.tasks, start=1)
    }
    assert summary.collision is not None
    expected = (
        compare_states(states, summary.collision.threshold).interference().to_json()["average_collision_rate"]
    )
    assert summary.collision.average_rate == pytest.approx(expected)
    assert summary.collision.pairs.keys() == {"colors|animals"}
    assert read_summary(run) == summary
    assert json.loads((run / "analysis.json").read_text())["threshold"] == summary.collision.threshold
    assert "colors" in (run / "report.html").read_text()


@pytest.mark.parametrize("method", ["seqft", "mtl", "osf"])
def test_a_run_without_two_adapters_has_a_page_and_no_collisions(
    tmp_path: Path, tiny_model: TinyModel, method: str
) -> None:
    summary = learn(write_config(tmp_path, tiny_model("llama"), method=method))
    assert summary.status == "complete"
    assert summary.collision is None
    assert (tmp_path / "run/report.html").stat().st_size > 10_000


def test_a_page_that_cannot_be_made_costs_the_run_nothing(
    tmp_path: Path, tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from nlora.errors import RunError

    def refuse(*args: object) -> None:
        raise RunError("no such thing")

    monkeypatch.setattr("nlora.api.finish.write_report", refuse)
    monkeypatch.setattr("nlora.api.finish.analyze_run", refuse)
    assert learn(write_config(tmp_path, tiny_model("llama"))).status == "complete"
    assert "no report: no such thing" in caplog.text
