"""What the same command does to a run that is finished, but was asked for more or under another name."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers import learn
from nlora.api.learn import learn as learn_run
from nlora.config.load import load_config
from nlora.runs import stage_training
from nlora.runs.events import Progress
from nlora.runs.run_yaml import read_run_file
from nlora.runs.summary import read_summary

RUN = Path("runs/support")


@pytest.fixture(autouse=True)
def _nothing_is_trained(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage_training, "train", lambda *_, **__: pytest.fail("trained again"))


def said(*overrides: str) -> list[str]:
    lines: list[str] = []
    learn_run(load_config("support.yaml", overrides), Progress(lambda event: lines.append(str(event))))
    return lines


def test_scores_before_any_training_are_added_to_a_finished_run() -> None:
    before = read_summary(RUN)
    assert before.zero_shot is None
    lines = said("evaluate.zero_shot=true")
    assert f"{RUN}: all stages are learned; what is missing of the untouched model is measured" in lines
    after = read_summary(RUN)
    assert after.zero_shot is not None
    assert None not in after.zero_shot
    assert after.R == before.R
    assert said("evaluate.zero_shot=true") == [f"{RUN}: complete, nothing to do"]


def test_a_new_name_of_a_finished_run_is_recorded() -> None:
    assert learn("support.yaml", "name=desk", "output_dir=runs/support").name == "desk"
    record = read_run_file(RUN)
    assert record["config"]["name"] == "desk"
    assert record["changed"][-1]["what"] == ['name: "support" in the folder, "desk" now']
    assert "desk" in (RUN / "report.html").read_text()
    assert said("name=desk", "output_dir=runs/support") == [f"{RUN}: complete, nothing to do"]
