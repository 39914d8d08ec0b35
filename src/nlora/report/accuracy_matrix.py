"""The accuracy matrix with its names, for Python.

matrix = AccuracyMatrix(read_summary("runs/support"))
matrix["urgency", "tickets"]          # 75.0: the score on tickets after learning urgency
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nlora.runs.summary import Summary

_WIDTH = 100
"""Columns of the printed table."""


class AccuracyMatrix:
    """Scores in percent: a row for what was learned, a column for each task. Printed, the table of `nlora run`.

    >>> matrix = run.accuracy_matrix
    >>> matrix.tasks
    ('tickets', 'urgency')
    >>> matrix.values.shape
    (2, 2)
    >>> pandas.DataFrame(matrix.values, matrix.tasks, matrix.tasks)    # doctest: +SKIP
    """

    def __init__(self, summary: Summary) -> None:
        self._summary = summary

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the rows and of the columns, in the order of learning."""
        return self._summary.tasks

    @property
    def values(self) -> NDArray[np.float64]:
        """(T, T); row k is the model after learning task k; nan where nothing was scored."""
        return np.array(self._summary.R, dtype=np.float64)  # None becomes nan

    def __getitem__(self, names: tuple[str, str]) -> float | None:
        """The score after learning the first task on the second; None where nothing was scored.

        Raises KeyError for other names.
        """
        places = {task: i for i, task in enumerate(self.tasks)}
        learned, asked = names
        return self._summary.R[places[learned]][places[asked]]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self.values, dtype=dtype)

    def __repr__(self) -> str:
        from rich.console import Console

        from nlora.report.terminal import accuracy_table

        console = Console(file=io.StringIO(), width=_WIDTH, color_system=None, force_jupyter=False)
        with console.capture() as captured:
            console.print(accuracy_table(self._summary))
        return "\n".join(line.rstrip() for line in captured.get().splitlines())
