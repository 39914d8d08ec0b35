"""The folder that relative paths of a run's configuration refer to, so that projects can be copied and runs moved.

>>> config = Config(tasks=[{"name": "tickets", "train": "a.jsonl", "test": "b.jsonl"}])
>>> recorded(Path("runs/a"), config, Path("configs"))["base_folder"]
'../../configs'

run.yaml records the folder relative to itself, and as an absolute path for a run that is moved away from its data.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nlora.config.general_options import DEFAULT_TEXT
from nlora.config.outside_code import is_python_file
from nlora.config.paths import exists, expanded, path_problem
from nlora.config.places import SourceMap
from nlora.config.schema import BUILTIN, Config
from nlora.config.task_source import TaskSource
from nlora.errors import Problem

HERE, THEN = "base_folder", "base_folder_then"


TASK_PATHS = ("train", "test", "adapter")
"""Keys of a task that hold paths."""
GENERAL_PATHS = ("text", "harness_path")
"""Those of `evaluate.general`."""


def recorded(run_folder: Path, config: Config, base: Path) -> dict[str, str]:
    """The keys of run.yaml. base: the folder of the configuration's file; the current folder takes precedence."""
    paths = _relative_paths(config.model_dump())
    current = _found(Path(), paths)
    there = (Path() if current and current >= _found(base, paths) else base).resolve()
    here = run_folder.resolve()
    if here.parts[:2] != there.parts[:2]:  # only the root of the file system in common
        return {HERE: str(there)}
    return {HERE: Path(os.path.relpath(there, here)).as_posix(), THEN: str(there)}


def problems_in(record: Mapping[str, Any], places: SourceMap) -> list[Problem]:
    """What is wrong with the folders that a run.yaml records."""
    given = {(key,): str(record.get(key, ".")) for key in (HERE, THEN)}
    return [places.problem(key, what) for key, path in given.items() if (what := path_problem(path))]


def read(record: Mapping[str, Any], run_folder: Path) -> Path:
    """The folder that a run.yaml records; without one, its own. In older files the path is absolute."""
    there = (run_folder / str(record.get(HERE, "."))).resolve()
    then, config = record.get(THEN), record.get("config")
    if then is None or not isinstance(config, dict):
        return there
    paths, before = _relative_paths(config), Path(str(then))
    return there if _found(there, paths) >= _found(before, paths) else before


def located(config: Config, base: Path) -> Config:
    """The configuration with those relative paths made absolute that exist below `base`.

    Scoring a stage again then reads the run's own files, whatever is in the current folder.
    """

    def found(path: str | None) -> str | None:
        return (_below(base, path) or path) if path is not None and _is_relative(path) else path

    def moved(task: TaskSource) -> dict[str, str | None]:
        paths = {key: found(getattr(task, key)) for key in TASK_PATHS}
        if file := _metric_file(task.metric):
            paths["metric"] = f"{found(file)}:{str(task.metric).rpartition(':')[2]}"
        return paths

    tasks = (task.model_copy(update=moved(task)) for task in config.tasks)
    method = config.method
    if is_python_file(method.name):
        method = method.model_copy(update={"name": found(method.name)})
    return config.model_copy(update={"data": found(config.data), "tasks": tuple(tasks), "method": method})


def _relative_paths(config: Mapping[str, Any]) -> list[str]:
    """Those of the data, the metrics and the method. config: a mapping, checked or not."""
    tasks = config.get("tasks")
    entries = [entry for entry in tasks if isinstance(entry, dict)] if isinstance(tasks, list | tuple) else []
    paths = [config.get("data"), *(entry.get(split) for entry in entries for split in TASK_PATHS)]
    paths += [_metric_file(entry.get("metric")) for entry in entries]
    evaluate = config.get("evaluate")
    general = evaluate.get("general") if isinstance(evaluate, dict) else None
    paths += [general.get(key) for key in GENERAL_PATHS] if isinstance(general, dict) else []
    method = config.get("method")
    name = method.get("name") if isinstance(method, dict) else method
    if isinstance(name, str) and is_python_file(name):
        paths.append(name)
    return [path for path in paths if isinstance(path, str) and _is_relative(path)]


def _metric_file(metric: Any) -> str | None:
    """The file of a function of the user's own that scores a task; None for any other metric."""
    file = metric.rpartition(":")[0] if isinstance(metric, str) else ""
    return file if is_python_file(file) else None


def _found(folder: Path, paths: Sequence[str]) -> set[str]:
    """Those that the folder has. One that no folder has says nothing: an adapter's may be a hub id, or be gone."""
    return {path for path in paths if _below(folder, path)}


def _below(folder: Path, path: str) -> str | None:
    """The path, or the pattern of paths, below the folder; None if nothing is there."""
    if exists(folder / path):
        return str(folder / path)
    pattern = str(Path(glob.escape(str(folder))) / path)
    # As data files are found: Path.glob takes fewer patterns.
    return pattern if glob.has_magic(path) and any(glob.iglob(pattern, recursive=True)) else None  # noqa: PTH207


def _is_relative(path: str) -> bool:
    return (
        path not in (BUILTIN, DEFAULT_TEXT)
        and not path.startswith("hub:")
        and not expanded(path).is_absolute()
    )
