"""The files of a run's folder, read without torch: summary, configuration, stages with their losses.

Only summary.json is required. Missing stages and files are left out; a file that cannot be read raises a RunError.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from nlora.config import base_folder
from nlora.config.schema import Config
from nlora.errors import InputErrors, RunError, unusable
from nlora.runs.interference_file import Interference, read_interference
from nlora.runs.layout import OUTPUTS, PREDICTIONS_FILE, RUN_FILE, STAGE_FILE, stage_name
from nlora.runs.run_yaml import read_run_file
from nlora.runs.stage_files import refuse_gap
from nlora.runs.summary import StageRecord, Summary, read_summary


@dataclass(frozen=True, slots=True)
class Step:
    """A line of the Trainer's log. loss: the mean over the steps since the previous line, penalty included."""

    step: int
    loss: float
    penalty: float | None
    learning_rate: float | None = None


@dataclass(frozen=True, slots=True)
class StageFiles:
    """One committed stage. steps: optimizer steps. train_examples: of the task, None if unknown.

    by_label: of predict_results.json; empty if the file has none.
    """

    number: int
    task: str
    folder: Path
    record: StageRecord
    steps: int
    losses: tuple[Step, ...]
    train_examples: int | None
    decode: str | None
    predictions: Path | None
    by_label: dict[str, Any]


@dataclass(frozen=True, slots=True)
class RunFiles:
    """One run as the report needs it.

    label: the run's name on the page, unique there.
    order: its index among the runs of the page, which gives its color.
    config: None if it is from a version of nlora with other keys. base_folder: where its relative paths are looked up.
    """

    folder: Path
    label: str
    order: int
    summary: Summary
    config: Config | None
    base_folder: Path
    versions: dict[str, str]
    created: str | None
    stages: tuple[StageFiles, ...]
    interference: Interference | None

    @property
    def tasks(self) -> tuple[str, ...]:
        return self.summary.tasks

    @property
    def is_complete(self) -> bool:
        return self.summary.status == "complete"

    @property
    def learned(self) -> int:
        """How many stages are finished. Their folders may be gone: the scores are in the summary, too."""
        scored = [k for k, row in enumerate(self.summary.R, start=1) if any(v is not None for v in row)]
        return max([len(self.stages), *scored])

    @property
    def last(self) -> StageFiles | None:
        """The last finished stage; None if there is none, or its folder is gone."""
        return self.stages[-1] if self.stages and self.stages[-1].number == self.learned else None


_LEFT_OUT = "restore it, or move it out of the folder to leave it out of the report"

Analyzed = Sequence[tuple[RunFiles, Interference]]
"""Runs with the interference of their updates."""


def analyzed(runs: Sequence[RunFiles]) -> list[tuple[RunFiles, Interference]]:
    """The runs whose updates have been compared."""
    return [(run, run.interference) for run in runs if run.interference is not None]


def load_runs(folders: Sequence[str | Path]) -> list[RunFiles]:
    """The runs in the order given, with unique labels: the name, or with the seed, or the folder."""
    paths = [Path(folder) for folder in folders]
    places = [os.path.realpath(path) for path in paths]  # resolve() fails for a link to itself
    twice = next((i for i, place in enumerate(places) if place in places[:i]), None)
    if twice is not None:
        raise RunError(f"{paths[twice]}: is given twice; give each run once")
    return _labeled([load_run(path) for path in paths])


def load_run(folder: Path) -> RunFiles:
    """One run. Raises RunError, in one line, if the folder is not a run or one of its files is broken."""
    summary = read_summary(folder)
    record: dict[str, Any] = read_run_file(folder) if (folder / RUN_FILE).exists() else {}
    return RunFiles(
        folder=folder,
        label=summary.name,
        order=0,
        summary=summary,
        config=_config(record.get("config")),
        base_folder=base_folder.read(record, folder),
        versions={str(name): str(value) for name, value in record.get("versions", summary.versions).items()},
        created=None if record.get("created") is None else str(record["created"]),
        stages=tuple(_stages(folder, summary)),
        interference=read_interference(folder, summary),
    )


def read_json(path: Path) -> dict[str, Any]:
    """A mapping from a JSON file of a run. Raises RunError, in one line."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise RunError(f"{path}: is broken ({error}); {_LEFT_OUT}") from error
    if not isinstance(values, dict):
        raise RunError(f"{path}: is not a mapping; {_LEFT_OUT}")
    return values


def _labeled(runs: list[RunFiles]) -> list[RunFiles]:
    names = [run.summary.name for run in runs]
    seeded = [f"{run.summary.name}, seed {run.summary.seed}" for run in runs]
    folders = [str(run.folder) for run in runs]
    candidates = (names, seeded, [run.folder.name for run in runs], folders)
    labels = next((found for found in candidates if len(set(found)) == len(found)), folders)
    return [
        replace(run, label=label, order=order)
        for order, (run, label) in enumerate(zip(runs, labels, strict=True))
    ]


def _config(values: Any) -> Config | None:
    """The configuration, or None if this version does not know its keys; the page then relies on the summary."""
    if values is None:
        return None
    try:
        return Config.model_validate(values)
    except (ValidationError, InputErrors):
        return None


def _stages(folder: Path, summary: Summary) -> list[StageFiles]:
    """The committed stages, which are always the first ones."""
    places = [folder / OUTPUTS / stage_name(number, task) for number, task in enumerate(summary.tasks, 1)]
    refuse_gap(places)
    stages = zip(places, summary.tasks, strict=True)
    return [_stage(place, k, task) for k, (place, task) in enumerate(stages, start=1) if place.is_dir()]


def _stage(place: Path, number: int, task: str) -> StageFiles:
    try:
        record = StageRecord.model_validate_json((place / STAGE_FILE).read_bytes())
    except (OSError, ValidationError) as error:
        raise unusable(place / STAGE_FILE, error, "scored") from error
    results = read_json(place / "all_results.json") if (place / "all_results.json").is_file() else {}
    examples = results.get("train_samples")
    predictions = place / PREDICTIONS_FILE
    steps, losses = _trained(place / "trainer_state.json")
    return StageFiles(
        number=number,
        task=task,
        folder=place,
        record=record,
        steps=steps,
        losses=losses,
        train_examples=examples if isinstance(examples, int) else None,
        decode=None if results.get("decode") is None else str(results["decode"]),
        predictions=predictions if predictions.is_file() else None,
        by_label=results.get("by_label", {}),
    )


def _trained(path: Path) -> tuple[int, tuple[Step, ...]]:
    """The number of steps that the Trainer took, and its log lines with a loss, in order.

    The last step may not have been logged.
    """
    if not path.is_file():
        return 0, ()
    state = read_json(path)
    history, taken = state.get("log_history", []), state.get("global_step")
    steps = []
    for line in history if isinstance(history, list) else []:
        loss, step = (line.get("loss"), line.get("step")) if isinstance(line, dict) else (None, None)
        if isinstance(step, int) and isinstance(loss, int | float) and math.isfinite(loss):
            steps.append(Step(step, float(loss), _known(line, "penalty"), _known(line, "learning_rate")))
    logged = steps[-1].step if steps else 0
    return max(taken, logged) if isinstance(taken, int) else logged, tuple(steps)


def _known(line: dict[str, Any], key: str) -> float | None:
    value = line.get(key)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
