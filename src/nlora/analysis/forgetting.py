"""Whether tasks that collide more also forget more: what learning b cost a, beside what their updates share.

    against_forgetting(["r8", "tweets", "news"], R, {"r8|tweets": {"collision_rate": 0.4, "overlap_energy": 0.3}, ...})

No torch in here: numbers in, numbers out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

MEASURES = ("collision_rate", "overlap_energy")
FEWEST_PAIRS = 4
"""With fewer a correlation says nothing."""
_ROUNDS = 9999
_SEED = 0


def against_forgetting(
    tasks: Sequence[str],
    R: Sequence[Sequence[float | None]],
    pairs: Mapping[str, Mapping[str, float | None]],
) -> dict[str, Any]:
    """Each pair of an earlier and a later task with its drop, and the correlations over these pairs.

    tasks: in the order of learning. R: R[k-1][i-1] is the score in percent on task i after stage k, None where not
    evaluated. pairs: measures of the updates by `earlier|later`; a pair that is not there is left out.

    drop: R[b-1][a] - R[b][a], in points: what the stage of b alone took from a; None where one of both is missing.
    correlation: by measure; None with fewer than FEWEST_PAIRS pairs, or where one side is constant.
    """
    rows = []
    for b in range(1, len(tasks)):
        for a in range(b):
            measures = pairs.get(f"{tasks[a]}|{tasks[b]}")
            if measures is None:
                continue
            before, after = R[b - 1][a], R[b][a]
            drop = None if before is None or after is None else before - after
            own = {measure: measures[measure] for measure in MEASURES}
            rows.append({"earlier": tasks[a], "later": tasks[b], "drop": drop, **own})
    known = [row for row in rows if row["drop"] is not None]
    return {
        "pairs": rows,
        "correlation": {
            measure: correlation([row[measure] for row in known], [row["drop"] for row in known])
            for measure in MEASURES
        },
    }


def correlation(x: Sequence[Any], y: Sequence[Any]) -> dict[str, Any] | None:
    """How two measures of the same pairs go together, with its uncertainty; None where that cannot be said.

    pearson, spearman: -1 to 1. n: how many points. p_permutation: share of random re-pairings (9999, seeded) whose
    Pearson correlation is at least as far from 0, the given one counted in. pearson_interval_95: 2.5th to 97.5th
    percentile of Pearson over bootstrap samples of the points (9999, seeded).

    Both treat the points as independent. Pairs of tasks are not, as each task is in many of them: read p as a lower
    bound and the interval as too narrow.
    """
    known = [(a, b) for a, b in zip(x, y, strict=True) if a is not None and b is not None]
    if len(known) < FEWEST_PAIRS:
        return None
    first, second = np.array(known, float).T
    pearson = _pearson(first[None], second[None])[0]
    if np.isnan(pearson):
        return None
    generator = np.random.default_rng(_SEED)
    shuffled = generator.permuted(np.tile(second, (_ROUNDS, 1)), axis=1)
    # 1e-12: the same points in another order of adding up.
    as_far = np.abs(_pearson(first[None], shuffled)) >= abs(pearson) - 1e-12
    drawn = generator.integers(len(known), size=(_ROUNDS, len(known)))
    resampled = _pearson(first[drawn], second[drawn])
    low, high = np.nanpercentile(resampled, [2.5, 97.5])
    return {
        "pearson": float(pearson),
        "spearman": float(_pearson(_ranks(first)[None], _ranks(second)[None])[0]),
        "n": len(known),
        "p_permutation": float((1 + as_far.sum()) / (1 + _ROUNDS)),
        "pearson_interval_95": [float(low), float(high)],
    }


def _pearson(x: Floats, y: Floats) -> Floats:
    """Row by row; NaN where a row is constant."""
    x = x - x.mean(1, keepdims=True)
    y = y - y.mean(1, keepdims=True)
    norms = np.sqrt((x * x).sum(1) * (y * y).sum(1))
    made: Floats = np.full(norms.shape, np.nan)
    # Below that, what is left of a constant row is rounding.
    np.divide((x * y).sum(1), norms, out=made, where=norms > 1e-12)
    return np.clip(made, -1.0, 1.0)


def _ranks(values: Floats) -> Floats:
    """From 1; equal values share the mean of their ranks."""
    _, inverse, count = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    ranks: Floats = (last - (count - 1) / 2)[inverse]
    return ranks
