"""Runs that several tests evaluate."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from evaluated_runs import Runs, train_run

from nlora.runs.summary import Summary


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[[str], Path]) -> Runs:
    """finished(method) -> its folder and its summary; made once."""
    made: dict[str, tuple[Path, Summary]] = {}

    def finished(method: str) -> tuple[Path, Summary]:
        if method not in made:
            folder = tmp_path_factory.mktemp(method)
            made[method] = folder / "run", train_run(folder, tiny_model("llama"), method)
        return made[method]

    return finished
