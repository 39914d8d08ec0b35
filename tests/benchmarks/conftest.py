"""What the tests of the benchmarks share."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """script(name) -> a module of benchmarks/, found beside the others as when it is run."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


@pytest.fixture
def benchmark_folder(tmp_path: Path) -> Path:
    """A data set of 40 examples of many lengths in the released layout."""
    folder = tmp_path / "CL_Benchmark" / "TC" / "agnews"
    folder.mkdir(parents=True)
    labels = ["World", "Sports"]
    rows = [{"sentence": "fox " * (1 + 7 * i % 40), "label": labels[i % 2]} for i in range(40)]
    for split in ("train", "test"):
        (folder / f"{split}.json").write_text(json.dumps(rows))
    (folder / "labels.json").write_text(json.dumps(labels))
    return tmp_path / "CL_Benchmark"
