"""What is left of a configuration when its mistakes are taken out, so that the rest can be checked as well.

    config, doubtful = drop_invalid({"tasks": ["agnews"], "model": "nope/nope", "train": {"epohcs": 3}})
    config.model                       # "nope/nope", which can be looked for now
    doubtful                           # {("train", "epohcs")}

Nothing is ever run with such a configuration: a misspelt key must only not hide a model that is not there,
which a person would learn of one correction later.
"""

from __future__ import annotations

import copy
from typing import Any

from pydantic import ValidationError

from nlora.config.schema import Config
from nlora.config.yaml_positions import Key

# What takes a mistake out can uncover another one, as a `train` that is right but for two options together.
_ROUNDS = 4


def drop_invalid(data: dict[str, Any]) -> tuple[Config | None, frozenset[Key]]:
    """The configuration without what is wrong in it, and the keys whose values are not the user's any more.

    A task with a mistake stays as a name only, so that the others keep their numbers. None: nothing is left.
    """
    rest = copy.deepcopy(data)
    doubtful: set[Key] = set()
    for _ in range(_ROUNDS):
        try:
            config = Config.model_validate(rest)
        except ValidationError as error:
            doubtful |= {_taken_out(rest, detail["loc"]) for detail in error.errors(include_url=False)}
            continue
        wrong = [("stages", name) for name in config.stages if not _merges(config, name)]
        if not wrong:
            return config, frozenset(doubtful)
        doubtful |= {_taken_out(rest, key) for key in wrong}
    return None, frozenset(doubtful)


def _merges(config: Config, name: str) -> bool:
    """Whether the options of one stage are right together with those of all."""
    try:
        config.train_options(name)
    except ValidationError:
        return False
    return True


def _taken_out(data: dict[str, Any], path: Key) -> Key:
    """Removes the value at `path`; returns the key that has gone, which is a shorter one where it must be."""
    if path[:1] == ("tasks",):
        tasks = data.get("tasks")
        if isinstance(tasks, list) and len(path) > 1 and isinstance(path[1], int) and path[1] < len(tasks):
            tasks[path[1]] = {"name": f"task {path[1] + 1}, with a mistake"}
            return path[:2]
        data["tasks"] = [{"name": "tasks, with a mistake"}]
        return ("tasks",)
    if path[:1] == ("stages",) and len(path) > 1 and isinstance(data.get("stages"), dict):
        data["stages"].pop(path[1], None)
        return path[:2]
    parent: Any = data
    for part in path[:-1]:
        parent = parent.get(part) if isinstance(parent, dict) else None
    if path and isinstance(parent, dict) and path[-1] in parent:
        del parent[path[-1]]
        return path
    # What is missing, or wrong as a whole, takes its section with it.
    data.pop(str(path[0]) if path else "", None)
    return path[:1]
