"""A stage that has lost its folder or its record: every command says how to get it back, and writes nothing."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Nlora = Callable[..., Any]
RUN = "runs/support"
READERS = {
    "eval": ["eval", RUN],
    "predict": ["predict", RUN, "--task", "tickets", "--file", "tickets/test.jsonl"],
    "gate": ["gate", RUN],
    "export": ["export", RUN, "out", "--as", "merged"],
    "report": ["report", RUN],
}


@pytest.mark.parametrize("arguments", READERS.values(), ids=READERS)
def test_a_stage_without_a_record_is_repaired_not_deleted(
    nlora: Nlora, here: Path, arguments: list[str]
) -> None:
    (here / RUN / "outputs/2-urgency/stage.json").unlink()
    assert_refused(
        nlora,
        here,
        f"error: {RUN}/outputs/2-urgency/stage.json: is missing; restore it, or give the run's command with --repair, "
        "which has the stage scored again\n",
        arguments,
    )


@pytest.mark.parametrize("arguments", [*READERS.values(), ["analyze", RUN]], ids=[*READERS, "analyze"])
def test_a_lost_stage_before_a_later_one_is_named(nlora: Nlora, here: Path, arguments: list[str]) -> None:
    shutil.rmtree(here / RUN / "outputs/1-tickets")
    assert_refused(
        nlora,
        here,
        f"error: {RUN}/outputs/1-tickets: is missing, but later stages exist; restore it, or give the run's command "
        "with --repair, which has the stage trained again\n",
        arguments,
    )


def assert_refused(nlora: Nlora, here: Path, message: str, arguments: list[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in here.rglob("*")}
    told = nlora(*arguments)
    assert (told.status, told.out, told.err) == (2, "", message)
    assert {path: path.stat().st_mtime_ns for path in here.rglob("*")} == before
