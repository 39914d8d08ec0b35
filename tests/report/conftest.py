"""Runs shared by the tests of the page; no test changes them."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_runs import make_run

TASKS = ("colors", "animals", "plants")


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs by what is special about them."""
    root = tmp_path_factory.mktemp("runs")
    nlora = {"name": "nlora", "weight": 1e-5}
    return {
        "one": make_run(root / "one", method=nlora, analyzed=True),
        "bare": make_run(root / "bare", name="bare"),
        "half": make_run(root / "half", name="half", stages=1),
        "empty": make_run(root / "empty", name="empty", stages=0),
        "order": make_run(root / "order", name="order", tasks=TASKS[::-1], analyzed=True),
        "other": make_run(root / "other", name="other", tasks=("colors", "metals")),
        "single": make_run(root / "single", name="single", tasks=("colors",)),
        "long": make_run(
            root / "long", name="long", tasks=[f"task{k}" for k in range(15)], analyzed=True, steps=400
        ),
    }
