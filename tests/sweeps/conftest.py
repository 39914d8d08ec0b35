"""A sweep that this machine ran, to which those of clusters are compared."""

from __future__ import annotations

from typing import Any

import pytest

from nlora.sweeps.runners import LocalRunner
from sweeps import swept_with, two_runs


@pytest.fixture(scope="session")
def local_rows(tmp_path_factory: pytest.TempPathFactory, tiny_model: Any) -> list[dict[str, str]]:
    """The rows of the table of `two_runs`."""
    return swept_with(LocalRunner(2, []), two_runs(tmp_path_factory.mktemp("local"), tiny_model))[1]
