"""The line of a variant: the mean over its seeds, with the spread as a band."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from nlora.report.charts.lines import Series
from nlora.report.charts.palette import series_dash, series_role
from nlora.report.comparison import Spread
from nlora.report.variants import Variant

BAND = "Lines are means over the seeds; bands reach one sample standard deviation to either side."


def banded(
    variant: Variant,
    values: Mapping[float, Sequence[float]],
    *,
    dots: bool = True,
    width: float = 2.0,
    high: float = math.inf,
) -> Series:
    """values: those of the seeds by x, from 0 to `high`, where the band is cut; a single seed has no band."""
    spreads = {x: Spread.of(of_seeds) for x, of_seeds in values.items()}
    return Series(
        variant.label,
        tuple((x, spread.mean) for x, spread in spreads.items()),
        series_role(variant.order),
        series_dash(variant.order),
        dots=dots,
        width=width,
        band=tuple(
            (x, max(s.mean - s.deviation, 0.0), min(s.mean + s.deviation, high))
            for x, s in spreads.items()
            if s.deviation is not None
        )
        if any(s.deviation for s in spreads.values())
        else (),
    )


def reach(lines: Sequence[Series]) -> list[float]:
    """All values that lines and their bands take."""
    return [v for s in lines for v in (*(y for _, y in s.points), *(e for _, *ends in s.band for e in ends))]
