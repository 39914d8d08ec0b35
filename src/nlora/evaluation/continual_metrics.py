"""Metrics of continual learning: average accuracy, backward and forward transfer, forgetting.

>>> averages = summarize([[90.0, None], [70.0, 80.0]])
>>> averages["average_accuracy"], averages["backward_transfer"], averages["forgetting"]
(75.0, -20.0, 20.0)

R is the accuracy matrix in percent: R[k][i] is the score on task i after stage k, both in the order of learning. If a
formula needs a missing score, its result is None, because a mean over the other scores would be another quantity.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any

Row = Sequence[float | None]
ROUNDING = 1e-9
"""Points by which a drop may exceed a limit that it reaches exactly: 100 * 50 / 150 - 100 * 47 / 150 > 2."""


def summarize(R: Sequence[Row] | Any, *, zero_shot: Row | Any = None) -> dict[str, float | None]:
    """The metrics of an accuracy matrix in percent. Each is a mean over tasks, not over examples.

    R: T rows of T scores (fewer rows while a run is in progress); R[k-1][i-1] is the score on task i after stage k,
        None or NaN if it was not evaluated. An array, a data frame or `Run.accuracy_matrix` will do, too.
    zero_shot: T scores before any training, R_0; only forward transfer needs them.

    With indices from 1:

    - average_accuracy  = 1/T     Σ_{i=1..T}   R[T][i]
    - backward_transfer = 1/(T-1) Σ_{i=1..T-1} (R[T][i] - R[i][i])
    - backward_transfer_over_all = 1/T Σ_{i=1..T} (R[T][i] - R[i][i]), of which the last term is 0
    - forgetting        = 1/(T-1) Σ_{i=1..T-1} (max_{i<=k<T} R[k][i] - R[T][i])
    - forward_transfer  = 1/(T-1) Σ_{i=2..T}   (R[i-1][i] - R_0[i])

    All but the first are None for a single task. Sources: Lopez-Paz and Ranzato (arXiv 1706.08840) for the
    transfers, Chaudhry et al. (arXiv 1801.10112) for forgetting. Some papers divide backward transfer by T: the code of
    SAPT does (score.py of github.com/circle-hit/SAPT).

    Raises ValueError, with row and column (from 1), if there are no rows, rows of different lengths, more rows than
    tasks, or an entry that is not a number from 0 to 100.

    >>> nlora.summarize([[90.0, None], [70.0, 80.0]])["forgetting"]
    20.0
    """
    scores, before = _checked(R, zero_shot)
    return _summarized(scores, before, range(len(before)))


def summarize_scored(R: Sequence[Row], *, zero_shot: Row | None = None) -> dict[str, float | None]:
    """`summarize` over the tasks that have scores: an adapter from elsewhere may come without test examples.

    A stage that learns such a task has a row like any other, in which the tasks before it may be forgotten.
    """
    scores, before = _checked(R, zero_shot)
    return _summarized(scores, before, scored_tasks(scores) or range(len(before)))


def scored_tasks(R: Sequence[Row]) -> list[int]:
    """The columns in which there is a score."""
    return [i for i in range(len(R[0])) if any(row[i] is not None for row in R)]


def _summarized(R: Sequence[Row], before: Row, tasks: Sequence[int]) -> dict[str, float | None]:
    """The metrics over these columns of R."""
    stages = len(before)
    last = R[-1] if len(R) == stages else [None] * stages
    diagonal = [R[i][i] if i < len(R) else None for i in range(stages)]
    earlier = [i for i in tasks if i < stages - 1]
    columns = {i: [R[k][i] for k in range(i, len(R) - 1)] for i in earlier}
    best = {i: _max(column) if column else None for i, column in columns.items()}
    ahead = {i: R[i - 1][i] if i <= len(R) else None for i in tasks if i}
    backward = _mean([_minus(last[i], diagonal[i]) for i in earlier])
    return {
        "average_accuracy": _mean([last[i] for i in tasks]),
        "backward_transfer": backward,
        "backward_transfer_over_all": None if backward is None else backward * len(earlier) / len(tasks),
        "forgetting": _mean([_minus(best[i], last[i]) for i in earlier]),
        "forward_transfer": _mean([_minus(score, before[i]) for i, score in ahead.items()]),
    }


def _minus(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def _max(values: Row) -> float | None:
    known = [value for value in values if value is not None]
    return max(known) if len(known) == len(values) else None


def _mean(values: Row) -> float | None:
    """The mean; None if there are no values, or any is missing."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None
    return math.fsum(known) / len(known)


def _checked(R: Any, zero_shot: Any) -> tuple[list[list[float | None]], list[float | None]]:
    """R and R_0 as floats; raises the ValueErrors of `summarize`."""
    R = [_listed(row, f"row {k}") for k, row in enumerate(_listed(R, "the accuracy matrix"), 1)]
    zero_shot = None if zero_shot is None else _listed(zero_shot, "zero_shot")
    if not R or not R[0]:
        raise ValueError("the accuracy matrix is empty; it needs a row per stage and a column per task")
    tasks = len(R[0])
    for k, row in enumerate(R, start=1):
        if k > tasks:
            raise ValueError(f"row {k}: there are only {tasks} tasks (columns), so at most {tasks} rows")
        if len(row) != tasks:
            raise ValueError(
                f"row {k} has {len(row)} columns, but row 1 has {tasks}; use None for a task that was not evaluated"
            )
    if zero_shot is not None and len(zero_shot) != tasks:
        raise ValueError(f"zero_shot: {len(zero_shot)} scores for {tasks} tasks")
    scores = [
        [_score(value, f"row {k}, column {i}") for i, value in enumerate(row, 1)]
        for k, row in enumerate(R, 1)
    ]
    before = [
        _score(value, f"zero_shot, column {i}") for i, value in enumerate(zero_shot or [None] * tasks, 1)
    ]
    return scores, before


def _listed(values: Any, what: str) -> list[Any]:
    """The items of a sequence, an array, a data frame or an AccuracyMatrix, without an import of any of them."""
    inner = getattr(values, "values", values)
    inner = values if callable(inner) else inner
    items = inner.tolist() if hasattr(inner, "tolist") else inner
    if isinstance(items, str | bytes | Mapping) or not isinstance(items, Iterable):
        raise ValueError(f"{what} must be a list, not {items!r}")  # noqa: TRY004 - one class for all errors
    return list(items)


def _score(value: object, where: str) -> float | None:
    if value is None or value != value:  # NaN
        return None
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ValueError(f"{where}: {value!r} is not a number")  # noqa: TRY004 - one class for all errors
    if not 0 <= float(value) <= 100:
        raise ValueError(f"{where}: {float(value)} is not a percentage from 0 to 100")
    return float(value)
