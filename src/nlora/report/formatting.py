"""Scores, times and memory as text, the same in every table. An unknown value is an empty text.

>>> score(61.84), score(-0.04), change(-0.04), duration(754), memory(1_900_000_000)
('61.8', '0.0', '+0.0', '13 min', '1.77 GiB')
"""

from __future__ import annotations


def score(value: float | None) -> str:
    """A percentage with one decimal, and never -0.0."""
    return "" if value is None else f"{round(value, 1) + 0.0:.1f}"


def change(value: float | None) -> str:
    """A difference of percentages with its sign, and never -0.0."""
    return "" if value is None else f"{round(value, 1) + 0.0:+.1f}"


def duration(seconds: float) -> str:
    """Two or three digits: `3.2 s`, `59 s`, `1.7 min`, `12 min`, `3.4 h`, `185 h`."""
    value, unit = seconds, "s"
    if round(seconds) >= 100:
        value, unit = (seconds / 60, "min") if round(seconds / 60) < 100 else (seconds / 3600, "h")
    return f"{value:.1f} {unit}" if value < 9.95 else f"{value:.0f} {unit}"


def memory(size_bytes: float | None) -> str:
    """`1.77 GiB` (2^30 bytes), or whole MiB below one GiB."""
    if size_bytes is None:
        return ""
    return f"{size_bytes / 2**30:.2f} GiB" if size_bytes >= 2**30 else f"{size_bytes / 2**20:.0f} MiB"
