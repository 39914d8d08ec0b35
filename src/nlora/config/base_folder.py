"""What the relative paths of a run's configuration refer to, so that a project can be copied and a run can be moved.

    record |= recorded(run_folder, config, Path("configs"))      # for run.yaml: base_folder: ../../configs
    base = read(record, run_folder)                              # the same folder, or the copy's own
    config = located(config, base)                               # with the paths that were found there

run.yaml has the folder as it is seen from run.yaml, and, for a run that is moved away from its data, as it was then.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nlora.config.schema import BUILTIN, Config

HERE, THEN = "base_folder", "base_folder_then"


def recorded(run_folder: Path, config: Config, base: Path) -> dict[str, str]:
    """The keys of run.yaml. base: where the configuration's file lies; the current folder is asked before it."""
    paths = _relative_paths(config.model_dump())
    there = (Path() if paths and _holds(Path(), paths) else base).resolve()
    here = run_folder.resolve()
    if here.parts[:2] != there.parts[:2]:  # nothing in common but the root of the file system
        return {HERE: str(there)}
    return {HERE: Path(os.path.relpath(there, here)).as_posix(), THEN: str(there)}


def read(record: Mapping[str, Any], run_folder: Path) -> Path:
    """The folder that a run.yaml means (an older one has it as an absolute path; one without it means its own)."""
    there = (run_folder / str(record.get(HERE, "."))).resolve()
    then, config = record.get(THEN), record.get("config")
    if then is None or not isinstance(config, dict) or _holds(there, _relative_paths(config)):
        return there
    return Path(str(then))


def located(config: Config, base: Path) -> Config:
    """The configuration with relative paths of its data that are there below `base` made absolute.

    A stage of a run that is asked again reads the run's own files first, whatever the current folder holds.
    """

    def found(path: str | None) -> str | None:
        return (
            str(base / path) if path is not None and _is_relative(path) and (base / path).exists() else path
        )

    tasks = (t.model_copy(update={"train": found(t.train), "test": found(t.test)}) for t in config.tasks)
    return config.model_copy(update={"data": found(config.data), "tasks": tuple(tasks)})


def _relative_paths(config: Mapping[str, Any]) -> list[str]:
    """Of the data; config: as a mapping, checked or not."""
    tasks = config.get("tasks")
    entries = [entry for entry in tasks if isinstance(entry, dict)] if isinstance(tasks, list | tuple) else []
    paths = [config.get("data"), *(entry.get(split) for entry in entries for split in ("train", "test"))]
    return [path for path in paths if isinstance(path, str) and _is_relative(path)]


def _holds(folder: Path, paths: Sequence[str]) -> bool:
    return all((folder / path).exists() for path in paths)


def _is_relative(path: str) -> bool:
    return path != BUILTIN and not path.startswith("hub:") and not Path(path).expanduser().is_absolute()
