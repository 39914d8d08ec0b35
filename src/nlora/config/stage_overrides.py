"""What an override on the command line does to the settings of single tasks: it holds for all of them.

    data = {"tasks": ["a", "b"], "stages": {"a": {"train": {"epochs": 5}}, "b": {"method": {"weight": 1.2}}}}
    adjust_stages(data, ["a", "b"], ["train.epochs=1", "method=olora"])      # both stages are empty now

Whoever types `train.epochs=1` means the whole run, and a weight that a file gives one task belongs to the method or
the penalty that the file names. What an override says of a single stage (`stages.a.train.epochs=2`) stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def adjust_stages(data: dict[str, Any], tasks_before: Sequence[str | None], overrides: Sequence[str]) -> None:
    """Takes from `data["stages"]` what the overrides replace; changes data in place.

    tasks_before: the names of the tasks before the overrides. With `tasks=[...]` a task leaves the sequence, and what
    the file says of its stage leaves with it. A stage that an override itself names stays, and is a mistake.
    """
    stages = data.get("stages")
    if not isinstance(stages, dict):
        return
    keys = [text.partition("=")[0].strip() for text in overrides]
    now = _names(data)
    for name in tasks_before:
        if name not in now and not any(f"{key}.".startswith(f"stages.{name}.") for key in keys):
            stages.pop(name, None)
    if "stages" in keys:  # typed as well, so meant
        return
    for name, stage in stages.items():
        if isinstance(stage, dict) and f"stages.{name}" not in keys:
            own = {key.removeprefix(f"stages.{name}.") for key in keys if key.startswith(f"stages.{name}.")}
            for key in keys:
                _take_out(stage, key.split("."), own)


def _take_out(stage: dict[str, Any], path: list[str], own: set[str]) -> None:
    """Removes what an override of the whole run replaces. own: what overrides say of this very stage."""
    part = path[0]
    settings = stage.get(part)
    if part not in {"train", "method"} or not isinstance(settings, dict):
        return
    if len(path) == 1 or path[:2] == ["method", "name"]:
        gone = set(settings)
    elif path == ["method", "penalty"]:  # a weight is chosen for its penalty
        gone = {"penalty", "weight"}
    else:
        gone = {path[1]}
    for key in gone:
        if f"{part}.{key}" not in own and part not in own:
            settings.pop(key, None)


def _names(data: dict[str, Any]) -> list[str | None]:
    tasks = data.get("tasks")
    entries = tasks if isinstance(tasks, list) else []
    return [entry.get("name") if isinstance(entry, dict) else entry for entry in entries]
