"""Names in a run's folder, and what is said about a folder that is no run's."""

from __future__ import annotations

from pathlib import Path

from nlora.errors import RunError

RUN_FILE = "run.yaml"
REPORT_FILE = "report.html"
LOG_FILE = Path("logs", "train_and_infer.log")
OUTPUTS = "outputs"
ADAPTER = "adapter"
RESUME = "resume"
STAGE_FILE = "stage.json"
PREDICTIONS_FILE = "predict_eval_predictions.jsonl"
MEMORY_FILE = "memory.safetensors"
"""What the method remembers of a stage; only the last stage has it."""
REPLAY_FILE = "replay.json"
"""Which of its examples a stage keeps for the later ones, if its losses decide that."""
ROUTER_FILE = "router.safetensors"
"""Features of some training examples of a stage's task, in a run that guesses tasks."""
TRAINED_FILE = "trained.json"
"""What a stage's training gave. In an unfinished folder it marks a stage that is trained but not scored yet."""
WEIGHTS_TRIED_FILE = "weights_tried.json"
"""How `method.weight: auto` chose a stage's weight."""
DAMAGED = "damaged"
"""Where `nlora run --repair` moves what it does again."""
TEMPORARY = ".tmp-"
"""The beginning of temporary names."""

_UNSAFE = '<>:"|?*%'
_LONGEST_BYTES = 80
"""Of a task's name. File systems allow 255 for the whole name, and %XX triples a character."""


def stage_name(stage: int, task_name: str) -> str:
    """The name of a stage's folder. Characters that some system forbids in folder names are written as %XX.

    >>> stage_name(2, "amazon"), stage_name(1, "what?")
    ('2-amazon', '1-what%3F')
    """
    shortened = task_name.encode()[:_LONGEST_BYTES].decode(errors="ignore")
    safe = "".join(f"%{ord(c):02X}" if c in _UNSAFE else c for c in shortened)
    kept = safe.rstrip(". ")  # Windows drops these at the end of a name
    return f"{stage}-{kept}" + "".join(f"%{ord(c):02X}" for c in safe[len(kept) :])


def unfinished(stage_folder: Path) -> Path:
    """The folder of a stage before it is committed."""
    return stage_folder.with_name(f"{TEMPORARY}{stage_folder.name}")


def no_run(folder: str | Path, file: str) -> RunError:
    """The error for a path that is no run's. file: what it lacks."""
    where = Path(folder)
    why = f"no {file} in it" if where.is_dir() else "is a file" if where.is_file() else "no such folder"
    return RunError(f"{folder}: {why}; give the output_dir of a run")
