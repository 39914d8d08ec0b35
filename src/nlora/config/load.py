"""A YAML file, a shipped recipe or Python values, with overrides, as a checked configuration; and back.

    loaded = load_config("my-run.yaml", ["seed=7", "train.learning_rate=5e-4", "tasks=[agnews, yahoo]"])
    loaded.config.seed         # 7
    load_config("demo")        # the recipe of that name
    load_config({"tasks": ["agnews"]}, {"seed": 7})

Every mistake is found before anything starts, and all of them are reported at once, each with its line:

    my-run.yaml:9: train.epoch: unknown key; did you mean 'epochs'?
    train.batch_size=ten: must be a whole number >= 1, not 'ten'

What only the method knows, its own options, is checked where methods are known (`nlora.runs.plan`).
"""

from __future__ import annotations

import json
import math
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from nlora.config import base_folder as base_folders
from nlora.config.messages import number_problems, problems_of
from nlora.config.overrides import apply_override
from nlora.config.python_values import as_document, as_overrides
from nlora.config.recover import drop_invalid
from nlora.config.schema import Config
from nlora.config.stage_overrides import adjust_stages
from nlora.config.stage_problems import stage_problems
from nlora.config.yaml_positions import Document, Key, SourceMap, dotted, read_yaml, to_yaml
from nlora.errors import InputErrors, Problem, did_you_mean

RUN_FILE_KEYS = frozenset({"config", "versions"})
"""Top-level keys of the run.yaml that a run writes; such a file is read as the configuration in it."""
Source = str | os.PathLike[str] | Mapping[str, Any] | Config
Overrides = Sequence[str] | Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class LoadedConfig:
    """A configuration and where it came from.

    source_path: the file; None for a recipe and for Python values.
    base_folder: what relative paths in it refer to: the file's folder, without a file the current one, for the
        run.yaml of a run what they referred to in that run, or the same place in a copy of it. Its `output_dir`
        is the folder where it lies.
    places: the line or the override that each key came from.
    problems: the mistakes found; `config` then is only what is left without them, and must not be run.
    doubtful: the keys that were taken out for it.
    """

    config: Config
    source_path: Path | None
    base_folder: Path
    places: SourceMap
    problems: tuple[Problem, ...] = ()
    doubtful: frozenset[Key] = frozenset()

    def doubts(self, *key: str | int) -> bool:
        """Whether a mistake lies at this key, above it or inside of it: its value is not what the user meant."""
        return any(key[: len(wrong)] == wrong[: len(key)] for wrong in self.doubtful)


def load_config(source: Source, overrides: Overrides = ()) -> LoadedConfig:
    """Read and check a configuration.

    source: path of a YAML file, name of a shipped recipe, a mapping of Python values, or a Config.
    overrides: `dotted.path=value` texts, the value in YAML, or a mapping of dotted paths to Python values; later ones
        win. `tasks.0.name` reaches into a list.

    Raises InputErrors with every mistake that was found.

    >>> loaded = nlora.load_config("support.yaml", {"train.epochs": 2, "method": "olora"})
    >>> loaded.config.train.epochs, loaded.config.method.name
    (2.0, 'olora')
    """
    loaded = read_config(source, overrides)
    if loaded.problems:
        raise InputErrors(loaded.problems)
    return loaded


def read_config(source: Source, overrides: Overrides = ()) -> LoadedConfig:
    """As `load_config`, but mistakes come with the configuration, so that data and model can be checked too.

    Raises InputErrors where nothing is left to check.
    """
    document, path = _read(source)
    overrides = as_overrides(overrides)
    shown = document.places.source
    problems = list(document.problems)
    data, places = document.data, document.places
    base_folder = path.parent if path else Path()
    if isinstance(data, dict) and set(data) >= RUN_FILE_KEYS:
        here, base_folder = base_folder, base_folders.read(data, base_folder)
        data, places = data["config"], places.inside("config")
        if (
            isinstance(data, dict) and (here / "summary.json").is_file()
        ):  # a run's folder, wherever it lies now
            data["output_dir"] = str(here)
    if not isinstance(data, dict):
        raise InputErrors(problems or [_not_a_mapping(data, shown)])
    if "base" in data and "tasks" not in data:
        raise InputErrors([Problem(shown, f"is the file of a sweep: nlora sweep {shlex.quote(shown)}")])
    named = _task_names(data)
    for override in overrides:
        changed = apply_override(data, places, override)
        if isinstance(changed, SourceMap):
            places = changed
        else:
            problems += changed
    adjust_stages(data, named, overrides)
    problems = sorted(dict.fromkeys(problems + _mistakes(data, places)), key=_line)
    config, doubtful = drop_invalid(data)
    if config is None:
        raise InputErrors(problems)
    return LoadedConfig(config, path, base_folder, places, tuple(problems), doubtful | _repeated(data))


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


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What differs between a folder's configuration and the one at hand, one line for each key.

    old, new: `Config.model_dump(mode="json")`. Example: "train.epochs: 1 in the folder, 2 now".
    """
    before, now = _flat(old), _flat(new)
    return [
        f"{dotted(key)}: {_value(before, key)} in the folder, {_value(now, key)} now"
        for key in dict.fromkeys([*before, *now])
        if key not in before or key not in now or before[key] != now[key]
    ]


def _recipes() -> Traversable:
    return resources.files("nlora.config") / "recipes"


def _choice(names: Sequence[str]) -> str:
    return f"; the recipes are {', '.join(names)}" if names else ""


def _read(source: Source) -> tuple[Document, Path | None]:
    """What the user gave, and the path of its file, where it has one."""
    if isinstance(source, Config):
        source = source.model_dump(mode="json")
    if isinstance(source, Mapping):
        return as_document(source), None
    text, shown, path = _read_text(str(source))
    return read_yaml(text, shown), path


def _read_text(source: str) -> tuple[str, str, Path | None]:
    """Text, how to call it, and path (None: a recipe) of what the user named."""
    path = Path(source)
    names = recipe_names()
    if not path.is_file():
        if source in names:
            return recipe_text(source), f"recipe {source}", None
        if all((path / name).is_file() for name in ("run.yaml", "summary.json")):
            what = (
                f"is the folder of a run, which goes on by: nlora run {shlex.quote(str(path / 'run.yaml'))}"
            )
            raise InputErrors([Problem(source, what)])
        what = "is a folder, not a YAML file" if path.is_dir() else "no such file, and no recipe of that name"
        raise InputErrors([Problem(source, f"{what}{did_you_mean(source, names)}{_choice(names)}")])
    try:
        return path.read_text(encoding="utf-8-sig"), source, path
    except UnicodeDecodeError as error:
        raise InputErrors(
            [Problem(source, f"not UTF-8 text (byte {error.start + 1}); save it as UTF-8")]
        ) from error
    except OSError as error:
        raise InputErrors([Problem(source, f"cannot be read: {error.strerror}")]) from error


def _not_a_mapping(data: Any, shown: str) -> Problem:
    if data is None:
        return Problem(shown, "is empty; a run needs at least 'tasks: [...]'")
    return Problem(
        shown, "must hold keys such as 'tasks: [...]' at its top level, not a list or a single value"
    )


def _line(problem: Problem) -> float:
    """The line that a problem names, so that they come in the file's order; overrides come last."""
    line = re.search(r":(\d+)(?::|$)", problem.where)
    return float(line[1]) if line else math.inf


def _mistakes(data: dict[str, Any], places: SourceMap) -> list[Problem]:
    """Everything that is wrong with the values themselves."""
    problems = number_problems(data, Config, places)
    try:
        Config.model_validate(data)
    except ValidationError as error:
        # output_dir has a default, unless the name that it is made from is wrong: one mistake, reported once.
        made_up = () if "output_dir" in data else (("output_dir",),)
        problems += problems_of(error, Config, places, lambda path: None if path in made_up else path)
    return problems + _name_problems(data, places) + stage_problems(data, places)


def _task_names(data: dict[str, Any]) -> list[str | None]:
    tasks = data.get("tasks")
    entries = tasks if isinstance(tasks, list) else []
    names = [entry.get("name") if isinstance(entry, dict) else entry for entry in entries]
    return [name if isinstance(name, str) else None for name in names]


def _repeated(data: dict[str, Any]) -> frozenset[Key]:
    """The keys of tasks whose name an earlier one has already."""
    names = _task_names(data)
    return frozenset(("tasks", i) for i, name in enumerate(names) if name is not None and name in names[:i])


def _name_problems(data: dict[str, Any], places: SourceMap) -> list[Problem]:
    """Tasks that are there twice, and stages of tasks that are not there."""
    problems: list[Problem] = []
    names = _task_names(data)
    for key in sorted(_repeated(data)):
        what = f"a second task is called '{names[int(key[1])]}'; each needs a name of its own"
        problems.append(Problem(places.where(key), what))
    stages = data.get("stages")
    known = [name for name in names if name is not None]
    if isinstance(stages, dict) and known:
        for name in stages:
            if isinstance(name, str) and name not in known:
                hint = did_you_mean(name, known) or f"; the tasks are {', '.join(known)}"
                problems.append(Problem(places.where(("stages", name)), f"no task is called '{name}'{hint}"))
    return problems


def _flat(value: Any, path: Key = ()) -> dict[Key, Any]:
    """Nested values by their dotted keys; lists of plain values stay whole."""
    if isinstance(value, dict) and (value or not path):
        return {
            key: leaf for name, inner in value.items() for key, leaf in _flat(inner, (*path, name)).items()
        }
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        return {key: leaf for i, inner in enumerate(value) for key, leaf in _flat(inner, (*path, i)).items()}
    return {path: value}


def _value(values: dict[Key, Any], key: Key) -> str:
    return json.dumps(values[key], ensure_ascii=False) if key in values else "absent"
