"""The accuracy matrix with the names of its tasks, for use from Python."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nlora.runs.summary import Summary

_WIDTH = 100
"""Columns of the printed table."""


class AccuracyMatrix:
    """Scores in percent: a row per task learned, a column per task scored. Prints as the table of `nlora run`.

    >>> matrix = run.accuracy_matrix
    >>> matrix.tasks
    ('tickets', 'urgency')
    >>> matrix.values.shape
    (2, 2)

    As a data frame: `pandas.DataFrame(matrix.values, matrix.tasks, matrix.tasks)`.
    """

    def __init__(self, summary: Summary) -> None:
        self._summary = summary

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of the rows and columns, in the order of learning."""
        return self._summary.tasks

    @property
    def values(self) -> NDArray[np.float64]:
        """(T, T); row k is the model after learning task k; NaN if not scored."""
        return np.array(self._summary.R, dtype=np.float64)  # None becomes nan

    def __getitem__(self, names: tuple[str, str]) -> float | None:
        """`matrix[learned, scored]`: the score on the second task after learning the first; None if not scored.

        Raises KeyError for unknown names.
        """
        index = {task: i for i, task in enumerate(self.tasks)}
        learned, scored = names
        return self._summary.R[index[learned]][index[scored]]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self.values, dtype=dtype)

    def __repr__(self) -> str:
        from nlora.report.terminal import accuracy_table
        from nlora.runs.console import as_text

        return as_text(accuracy_table(self._summary), _WIDTH)
