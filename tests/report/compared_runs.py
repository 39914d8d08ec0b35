"""Folders of runs for `nlora compare`, made without training, and their comparison as text."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from rich.console import Console

from helpers import scores_of
from nlora.config.schema import Config
from nlora.report.comparison import Comparison, compare, read_runs
from nlora.report.comparison_formats import written
from nlora.report.comparison_table import ComparisonView
from nlora.runs.summary import Collision, StageRecord, summary_of, write_summary

ORDER_1 = ("dbpedia", "amazon", "yahoo", "agnews")
ONE_TASK: dict[str, Any] = {"tasks": ("a",), "last": (50,)}


def run(
    folder: Path,
    name: str = "plain",
    seed: int = 1,
    last: tuple[float, ...] = (50, 80),
    tasks: tuple[str, ...] = ("a", "b"),
    learned: int | None = None,
    rate: float | None = None,
    **config: Any,
) -> Path:
    """A run's folder whose every score when just learned is 80, and whose last row is `last`."""
    T = len(tasks)
    rows = [tuple(80.0 if i == k else 60.0 if i < k else None for i in range(T)) for k in range(T - 1)]
    rows.append(tuple(map(float, last)))
    records = [
        StageRecord(
            stage=k + 1,
            task=tasks[k],
            scores=scores_of(tasks, rows[k]),
            train_seconds=30 * seed,
            evaluate_seconds=1,
            train_samples_per_second=1,
            peak_memory_bytes=2**30 + seed,
            trained_parameters=460_800,
        )
        for k in range(T if learned is None else learned)
    ]
    values = {
        "tasks": list(tasks),
        "name": name,
        "seed": seed,
        "model": "tiny",
        "method": "inclora",
        **config,
    }
    collision = None if rate is None else Collision(threshold=1e-4, average_rate=rate, pairs={})
    folder.mkdir(parents=True)
    write_summary(folder, summary_of(Config.model_validate(values), records, collision=collision))
    return folder


def changed(folder: Path, **keys: Any) -> Path:
    """The run, with keys of its summary changed."""
    path = folder / "summary.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))
    return folder


def digests(
    test: str, *, count: int = 9, drawn_from: str | None = None, train: str = "t", prompt: str = "p"
) -> Any:
    """The digests of task a."""
    return {
        "a": {
            "train": {"sha256": train, "count": 20},
            "test": {"sha256": test, "count": count, "drawn_from": drawn_from},
            "prompt_sha256": prompt,
        }
    }


def compared(*folders: Path, everything: bool = False) -> Comparison:
    return compare(read_runs(folders), published="all" if everything else "methods")


def shown(comparison: Comparison, width: int = 80) -> str:
    console = Console(width=width, force_terminal=False, color_system=None)
    with console.capture() as captured:
        console.print(ComparisonView(comparison))
    return captured.get()


def table_of(comparison: Comparison) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(written(comparison, "csv"))))
