"""Axes with round ticks, linear or logarithmic, that map values to positions.

>>> axis = linear_axis("score", [57.1, 82.9])
>>> axis.low, axis.high, axis.place(70.0)
(50.0, 90.0, 0.5)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from nlora.report.charts.scene import text_width


@dataclass(frozen=True, slots=True)
class Axis:
    """A range with its ticks. ticks: values with their text."""

    label: str
    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    log: bool = False

    def place(self, value: float) -> float:
        """The position of a value: 0 at `low`, 1 at `high`; 0 for a value <= 0 on a logarithmic axis."""
        if self.log:
            if value <= 0:
                return 0.0
            return (math.log10(value) - math.log10(self.low)) / (math.log10(self.high) - math.log10(self.low))
        return (value - self.low) / (self.high - self.low)

    def text(self, value: float) -> str:
        """The tick's text, or the value to a thousandth of the axis or finer."""
        span = abs(value) if self.log else self.high - self.low
        return next((text for tick, text in self.ticks if tick == value), number(value, span / 100))


def linear_axis(label: str, values: Iterable[float], *, zero: bool = False, ticks: int = 5) -> Axis:
    """Round ends around all values. zero: the axis includes 0, as bars need."""
    known = [value for value in values if math.isfinite(value)]
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    if high - low <= 1e-9 * max(abs(low), abs(high)):  # the mean of equal numbers may differ in its last bit
        low, high = (low, low + 1.0) if zero or low == 0 else (low - abs(low) * 0.1, high + abs(high) * 0.1)
    step = _step((high - low) / ticks)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    places = [index * step for index in range(first, last + 1)]
    return Axis(label, places[0], places[-1], tuple((value, number(value, step)) for value in places))


def log_axis(label: str, values: Iterable[float]) -> Axis:
    """Whole powers of ten around all positive values."""
    known = [value for value in values if math.isfinite(value) and value > 0]
    low, high = (min(known), max(known)) if known else (1.0, 10.0)
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    last = max(last, first + 1)
    stride = max(1, math.ceil((last - first) / 7))
    powers = range(first, last + 1, stride)
    return Axis(label, 10.0**first, 10.0**last, tuple((10.0**p, number(10.0**p)) for p in powers), log=True)


def index_axis(label: str, names: Sequence[str]) -> Axis:
    """Positions 1, 2, ... with names, of which at most 20 are written."""
    stride = max(1, math.ceil(len(names) / 20))
    ticks = tuple(
        (float(index), name) for index, name in enumerate(names, start=1) if (index - 1) % stride == 0
    )
    high = float(len(names))
    return Axis(label, 1.0, high, ticks) if high > 1 else Axis(label, 0.5, 1.5, ticks)


def stage_axis(tasks: Sequence[str], width: float) -> Axis:
    """The stages by task if the names fit in a chart of this width, else by number."""
    room = (width - 220 if width > 500 else width - 60) / max(len(tasks), 1)
    fits = all(text_width(task) + 8 <= room for task in tasks)
    return index_axis("stage", list(tasks) if fits else [str(k) for k in range(1, len(tasks) + 1)])


def up_to(axis: Axis, high: float) -> Axis:
    """The axis with its end moved in to `high`."""
    return replace(axis, high=high, ticks=tuple(tick for tick in axis.ticks if tick[0] <= high))


def number(value: float, step: float = 0.0) -> str:
    """A value in few characters: 0.02, 3e−5, 12,000, with a real minus sign.

    step: that between the ticks of an axis: values that are multiples of it are written exactly.
    """
    if value == 0:
        return "0"
    size = abs(value)
    exponent = math.floor(math.log10(size))
    # A step has one or two digits, such as 5 or 25.
    decimals = 1 - math.floor(math.log10(step)) if step else -exponent
    if size < 1e-3 or size >= 1e7:
        mantissa, _, power = f"{value:.{max(exponent + decimals, 1)}e}".partition("e")
        text = f"{_short(mantissa)}e{int(power)}"
    else:
        text = _short(f"{value:,.{max(decimals, 0 if size >= 1000 else 3 - exponent)}f}")
    return text.replace("-", "−")


def _short(text: str) -> str:
    return text.rstrip("0").rstrip(".") if "." in text else text


def _step(rough: float) -> float:
    power: float = 10.0 ** math.floor(math.log10(rough))
    return next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * (1 - 1e-9))
