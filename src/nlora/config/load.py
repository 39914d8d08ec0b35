"""A YAML file, a shipped recipe or Python values, with overrides, as a checked configuration; and back to YAML.

>>> load_config("demo", ["seed=7", "train.learning_rate=5e-4"]).config.train.learning_rate
0.0005
>>> load_config({"tasks": ["agnews"]}, {"seed": 7}).config.seed
7
>>> load_config("demo", ["train.epoch=1", "method.weight=ten"])
Traceback (most recent call last):
nlora.errors.InputErrors: train.epoch=1: unknown key; did you mean 'epochs'?
method.weight=ten: must be a number >= 0, or null, not 'ten'

All mistakes of a configuration are reported at once, each with its line; whether data, model and output folder suit it
is checked after that (`nlora.runs.plan`).
"""

from __future__ import annotations

import copy
import math
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from nlora.config import base_folder as base_folders
from nlora.config.characters import utf8
from nlora.config.checks import mistakes, new_name_problems
from nlora.config.overrides import (
    Overrides,
    apply,
    apply_to_stages,
    as_overrides,
    lost,
    take_entries,
    task_names,
)
from nlora.config.paths import expanded, is_file, is_folder
from nlora.config.places import Place, SourceMap
from nlora.config.python_values import plain
from nlora.config.schema import Config, expand_after
from nlora.config.yaml_positions import Document, read_yaml, to_yaml
from nlora.errors import InputErrors, Problem, did_you_mean

RUN_FILE_KEYS = frozenset({"config", "versions"})
"""Top-level keys of the run.yaml that a run writes; such a file is read as the configuration in it."""
Source = str | os.PathLike[str] | Mapping[str, Any] | Config | Document


@dataclass(frozen=True, slots=True)
class LoadedConfig:
    """A configuration and where it came from.

    source_path: the file; None for a recipe and for Python values.
    base_folder: what relative paths in it refer to: the file's folder, or the current one without a file. For the
        run.yaml of a run it is what they referred to in that run, or the same place in a copy of it, and `output_dir`
        is the run's folder.
    places: the line or the override that set each key.
    """

    config: Config
    source_path: Path | None
    base_folder: Path
    places: SourceMap


def load_config(source: Source, overrides: Overrides = ()) -> LoadedConfig:
    """Read and check a configuration.

    source: path of a YAML file, name of a shipped recipe, a mapping of Python values, a Config, or a YAML document.
    overrides: `dotted.path=value` texts, the value in YAML, of which later ones win; or a mapping of dotted paths to
        Python values. `tasks.0.name` reaches into a list.

    Raises InputErrors with every mistake in keys and values, the method's own options included.

    >>> loaded = nlora.load_config("support.yaml", {"train.epochs": 2, "method": "olora"})
    >>> loaded.config.train.epochs, loaded.config.method.name
    (2.0, 'olora')
    """
    document, path = _read(source)
    problems = list(document.problems)
    data, places = document.data, document.places
    base_folder = path.parent if path else Path()
    if is_old := isinstance(data, dict) and set(data) >= RUN_FILE_KEYS:
        if problems := problems + base_folders.problems_in(data, places):
            raise InputErrors(problems)
        here, base_folder = base_folder, base_folders.read(data, base_folder)
        data, places = data["config"], places.inside(("config",))
        if isinstance(data, dict) and (here / "summary.json").is_file():  # a run, wherever its folder is now
            data["output_dir"] = str(here)
    if not isinstance(data, dict):
        raise InputErrors(problems or [_not_a_mapping(data, places)])
    if "base" in data and "tasks" not in data:
        what = f"is the file of a sweep: nlora sweep {shlex.quote(places.source)}"
        raise InputErrors([Problem(places.source, what)])
    before, entries = task_names(data), list(data["tasks"]) if isinstance(data.get("tasks"), list) else []
    changes = as_overrides(overrides, problems)
    problems += lost(changes)
    for override in changes:
        try:
            places = apply(data, places, override)
        except InputErrors as error:
            problems += error.problems
    take_entries(data, entries)
    apply_to_stages(data, before, changes)
    places = replace(places, adapters=expand_after(data))
    problems += mistakes(data, places) + ([] if is_old else new_name_problems(data, places))
    if problems:
        raise InputErrors(sorted(dict.fromkeys(problems), key=_line))
    return LoadedConfig(Config.model_validate(data), path, base_folder, places)


def recipe_names() -> list[str]:
    """The names of the shipped recipes, sorted."""
    folder = _recipes()
    if not folder.is_dir():
        return []
    return sorted(
        entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml")
    )


def recipe_text(name: str) -> str:
    """The YAML text of a shipped recipe. Raises InputErrors when there is none of that name."""
    names = recipe_names()
    if name not in names:
        raise InputErrors([Problem(name, f"no such recipe{did_you_mean(name, names)}{_choice(names)}")])
    return (_recipes() / f"{name}.yaml").read_text(encoding="utf-8")


def recipe_description(name: str) -> str:
    """The first sentence of the comment that a recipe opens with; empty when it opens with none."""
    comment: list[str] = []
    for line in recipe_text(name).splitlines():
        stripped = line.strip()
        if not stripped.startswith("#") or (comment and stripped == "#"):
            break
        comment.append(stripped.lstrip("# "))
    return re.split(r"(?<=[.!?])\s", " ".join(comment).strip(), maxsplit=1)[0]


def dump(config: Config) -> str:
    """A configuration as YAML with every key; `load_config` of it is the same configuration."""
    return to_yaml(config.model_dump(mode="json"))


def _recipes() -> Traversable:
    return resources.files("nlora.config") / "recipes"


def _choice(names: Sequence[str]) -> str:
    return f"; the recipes are {', '.join(names)}" if names else ""


def _read(source: Source) -> tuple[Document, Path | None]:
    """What the user gave, and the path of its file, where it has one."""
    if isinstance(source, Config):
        is_default = source.output_dir == f"runs/{source.name}"  # which follows the name
        source = source.model_dump(mode="json", exclude={"output_dir"} if is_default else None)
    if isinstance(source, Document):
        return replace(source, data=copy.deepcopy(source.data)), None
    if isinstance(source, Mapping):
        problems: list[Problem] = []
        values = plain(source, Place("config"), problems)
        return Document(values, SourceMap("config"), tuple(problems)), None
    text, shown, path = _read_text(str(source))
    return read_yaml(text, shown), path


def _read_text(source: str) -> tuple[str, str, Path | None]:
    """Text, how to call it, and path (None: a recipe) of what the user named."""
    path = expanded(source)
    names = recipe_names()
    if not is_file(path):
        if source in names:
            return recipe_text(source), f"recipe {source}", None
        if all(is_file(path / name) for name in ("run.yaml", "summary.json")):
            what = f"is the folder of a run; to resume it: nlora run {shlex.quote(str(path / 'run.yaml'))}"
            raise InputErrors([Problem(source, what)])
        what = (
            "is a folder, not a YAML file" if is_folder(path) else "no such file, and no recipe of that name"
        )
        raise InputErrors([Problem(source or "''", f"{what}{did_you_mean(source, names)}{_choice(names)}")])
    try:
        return utf8(path.read_bytes()), source, path
    except ValueError as error:
        raise InputErrors([Problem(source, str(error))]) from error
    except OSError as error:
        raise InputErrors([Problem(source, f"cannot be read: {error.strerror}")]) from error


def _not_a_mapping(data: Any, places: SourceMap) -> Problem:
    what = "must hold keys such as 'tasks: [...]' at its top level, not a list or a single value"
    return Problem(places.source, "is empty; a run needs at least 'tasks: [...]'" if data is None else what)


def _line(problem: Problem) -> float:
    """Sorts problems in the order of the file, with those of overrides last."""
    return math.inf if problem.line is None else problem.line
