"""Do tasks whose updates interfere more also forget more? Measures of the updates against points lost.

>>> pairs = {"r8|tweets": PairValues(collision_rate=0.4)}
>>> against_forgetting(["r8", "tweets"], [[90.0, None], [70.0, 80.0]], pairs).pairs[0].drop
20.0
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from nlora.runs.interference_file import Correlation, Drop, Forgetting, PairValues

Floats = NDArray[np.float64]

MEASURES = ("collision_rate", "overlap_energy")
FEWEST_PAIRS = 4
"""With fewer, a correlation says nothing."""
_ROUNDS = 9999
_SEED = 0


def against_forgetting(
    tasks: Sequence[str], R: Sequence[Sequence[float | None]], pairs: Mapping[str, PairValues]
) -> Forgetting:
    """The drop for each pair of an earlier and a later task, and its correlation with the measures.

    tasks: in the order of learning. R: R[k-1][i-1] is the score in percent on task i after stage k, None where not
    evaluated. pairs: measures of the updates by `earlier|later`; missing pairs are left out.

    drop: R[b-1][a] - R[b][a], in points, the loss on a in the stage of b alone; None if either score is missing.
    """
    drops = []
    for b in range(1, len(tasks)):
        for a in range(b):
            measures = pairs.get(f"{tasks[a]}|{tasks[b]}")
            if measures is None:
                continue
            before, after = R[b - 1][a], R[b][a]
            drop = None if before is None or after is None else before - after
            own = {measure: getattr(measures, measure) for measure in MEASURES}
            drops.append(Drop(earlier=tasks[a], later=tasks[b], drop=drop, **own))
    return Forgetting(
        pairs=drops,
        correlation={
            measure: correlation([getattr(pair, measure) for pair in drops], [pair.drop for pair in drops])
            for measure in MEASURES
        },
    )


def correlation(x: Sequence[float | None], y: Sequence[float | None]) -> Correlation | None:
    """The correlation over the points known in both; None with fewer than FEWEST_PAIRS or a constant side.

    pearson, spearman: -1 to 1. n: the number of points. p_permutation: the share of 9999 random re-pairings (seeded)
    and the given pairing whose Pearson correlation is at least as far from 0. pearson_interval_95: 2.5th to 97.5th
    percentile of Pearson's over 9999 bootstrap samples of the points (seeded).

    Both treat the points as independent. Pairs of tasks are not, since each task is in many of them: the true p is
    larger and the true interval wider.
    """
    known = [(a, b) for a, b in zip(x, y, strict=True) if a is not None and b is not None]
    if len(known) < FEWEST_PAIRS:
        return None
    first, second = np.array(known, float).T
    found = pearson(first, second)
    if np.isnan(found):
        return None
    generator = np.random.default_rng(_SEED)
    shuffled = generator.permuted(np.tile(second, (_ROUNDS, 1)), axis=1)
    # 1e-12: rounding, when the same points are added in another order.
    as_far = np.abs(pearson(first[None], shuffled)) >= abs(found) - 1e-12
    drawn = generator.integers(len(known), size=(_ROUNDS, len(known)))
    resampled = pearson(first[drawn], second[drawn])
    low, high = np.nanpercentile(resampled, [2.5, 97.5])
    return Correlation(
        pearson=float(found),
        spearman=float(pearson(_ranks(first), _ranks(second))),
        n=len(known),
        p_permutation=float((1 + as_far.sum()) / (1 + _ROUNDS)),
        pearson_interval_95=(float(low), float(high)),
    )


def pearson(x: Floats, y: Floats) -> Floats:
    """Pearson's correlation over the last axis; NaN where one side is constant."""
    x = x - x.mean(-1, keepdims=True)
    y = y - y.mean(-1, keepdims=True)
    norms = np.sqrt((x * x).sum(-1) * (y * y).sum(-1))
    made: Floats = np.full(norms.shape, np.nan)
    # A constant row leaves only rounding errors below this.
    np.divide((x * y).sum(-1), norms, out=made, where=norms > 1e-12)
    return np.clip(made, -1.0, 1.0)


def _ranks(values: Floats) -> Floats:
    """From 1; equal values share the mean of their ranks."""
    _, inverse, count = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    ranks: Floats = (last - (count - 1) / 2)[inverse]
    return ranks
