"""A run of two small tasks as it was after its first stage, and what the runs of one configuration have in common."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from helpers import ANIMALS, COLORS, write_config, write_task
from nlora.config.load import load_config
from nlora.runs.folder import RunFolder
from nlora.runs.run_yaml import read_run_file


def small(folder: Path, model: Path, **changes: Any) -> Path:
    tasks = [
        write_task(folder / "data", name, labels, train=8, test=4)
        for name, labels in (("tints", COLORS), ("pets", ANIMALS))
    ]
    train = {"epochs": 1, "batch_size": 4, "learning_rate": 5e-3}
    return write_config(folder, model, tasks=tasks, train=train, **changes)


def after_one_stage(made: Path, to: Path) -> str:
    """A copy of the run as it was after its first stage; returns the override of the folder."""
    shutil.copytree(made / "run", to)
    for rest in ("outputs/2-pets", "summary.json", "report.html", "analysis.json"):
        shutil.rmtree(to / rest) if (to / rest).is_dir() else (to / rest).unlink(missing_ok=True)
    with RunFolder.open(_config(made, to), _versions(to)):
        pass  # writes the summary of one stage
    return f"output_dir={to}"


def _config(made: Path, to: Path) -> Any:
    return load_config(made / "config.yaml", [f"output_dir={to}"]).config


def _versions(run: Path) -> dict[str, str]:
    return dict(read_run_file(run)["versions"])


def outcome(run: Path) -> dict[str, bytes]:
    """The files of the stages that have no times in them."""
    names = ("adapter/*", "model/*.safetensors", "predict_eval_predictions.jsonl")
    return {
        str(p.relative_to(run)): p.read_bytes() for name in names for p in run.glob(f"outputs/[0-9]*/{name}")
    }
