"""Numbers as text: few digits, and the unit that fits."""

from __future__ import annotations

import pytest

from nlora.report.formatting import change, duration, memory, score


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0 s"), (3.21, "3.2 s"), (9.96, "10 s"), (99.4, "99 s"), (99.6, "1.7 min"), (754, "13 min"),
     (99.6 * 60, "1.7 h"), (12_240, "3.4 h"), (666_660, "185 h")],
)  # fmt: skip
def test_a_duration_has_two_or_three_digits(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_memory_is_in_binary_units() -> None:
    assert (memory(3 * 2**29), memory(25 * 2**20), memory(None)) == ("1.50 GiB", "25 MiB", "")


def test_scores_have_one_decimal_and_no_negative_zero() -> None:
    assert (score(61.84), score(-0.04), score(-1e-14), score(None)) == ("61.8", "0.0", "0.0", "")
    assert [change(value) for value in (-4.04, 0.04, -0.04, -0.0, None)] == [
        "-4.0",
        "+0.0",
        "+0.0",
        "+0.0",
        "",
    ]
