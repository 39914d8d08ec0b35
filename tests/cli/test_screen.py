"""Nothing but nlora's own words is on the screen."""

from __future__ import annotations

import logging
import re
import warnings
from pathlib import Path

import pytest

from nlora.runs.quiet import LOGGERS, quiet

EXPECTED = [
    r"support: nlora learns 2 tasks on \S+, about .*",
    r"\[1/2\] tickets learned after 0:\d\d   tickets [\d.]+",
    r"\[2/2\] urgency learned after 0:\d\d   tickets [\d.]+  urgency [\d.]+",
    r"support: nlora on .*",
    r"\S+, seed 3|seed 3|3",  # the line before, wrapped
    r"after learning +tickets +urgency",
    r"1 tickets +[\d.]+\*",
    r"2 urgency +[\d.]+ +[\d.]+\*",
    r"\* just learned",
    r"scores in percent: .*",
    r"average accuracy .*",
    r"backward transfer .*",
    r"forgetting .*",
    r"(report|summary|adapters|predictions|log) +runs/support/\S+",
]


def test_a_run_prints_its_own_lines_only(desk: Path) -> None:
    lines = [line.strip() for line in (desk / "screen.txt").read_text().splitlines() if line.strip()]
    others = [line for line in lines if not any(re.fullmatch(pattern, line) for pattern in EXPECTED)]
    assert others == []
    assert len(lines) >= 14


def test_what_is_silenced_is_silent_inside_of_the_block_only(capfd: pytest.CaptureFixture[str]) -> None:
    def noise() -> list[warnings.WarningMessage]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.warn("soon", FutureWarning, stacklevel=1)
            warnings.warn("'pin_memory' argument is set as true", UserWarning, stacklevel=1)
        return caught

    names = [f"{name}.some.module" for name in LOGGERS]
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        with quiet():
            assert noise() == []
            assert not any(logging.getLogger(name).isEnabledFor(logging.WARNING) for name in names)
            assert all(logging.getLogger(name).isEnabledFor(logging.ERROR) for name in names)
        assert len(noise()) == 2
    assert all(logging.getLogger(name).isEnabledFor(logging.WARNING) for name in names)
