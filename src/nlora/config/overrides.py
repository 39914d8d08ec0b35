"""Overrides of single keys: (path, value) pairs inside the program, `train.epochs=3` at the shell.

>>> override = parse("train.learning_rate=5e-4")
>>> override.path, override.value
(('train', 'learning_rate'), 0.0005)
>>> data = {"tasks": ["agnews"]}
>>> apply(data, SourceMap("my.yaml"), override).where(("train", "learning_rate")).source
'train.learning_rate=5e-4'
>>> data
{'tasks': ['agnews'], 'train': {'learning_rate': 0.0005}}

The value is YAML, as in a file: numbers, lists, null and quotes mean the same.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nlora.config.other_names import named_elsewhere
from nlora.config.places import Place, SourceMap
from nlora.config.python_values import OMITTED, plain
from nlora.config.schema import Config, EvaluateOptions, LoraOptions
from nlora.config.train_options import TrainOptions
from nlora.config.yaml_positions import read_yaml
from nlora.errors import InputErrors, Key, Problem, dotted


@dataclass(frozen=True, slots=True)
class Override:
    """A key of a configuration and its new value.

    path: a number in it is a place in a list, from 0. place: where the user wrote it. written: as of `SourceMap`.
    """

    path: tuple[str, ...]
    value: Any
    place: Place
    written: Mapping[Key, str] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """`train.epochs`."""
        return dotted(self.path)

    @property
    def text(self) -> str:
        """`train.epochs=3`, as the shell takes it: the value as it is where YAML reads it back the same, else JSON."""
        text = self.value if isinstance(self.value, str) else ""
        if not text or read_yaml(text, "").data != self.value:
            text = shown(self.value)
        return f"{self.key}={text}"


Overrides = Sequence[str | Override] | Mapping[str, Any]
_NOT_IN_YAML = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")
"""Characters that JSON may hold as they are; YAML folds some as line breaks and refuses others."""
_SECTIONS = {"train", "lora", "evaluate", "method", "replay", "router", "auto_weight"}


def shown(value: Any) -> str:
    """A value on one line, as YAML reads it."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return _NOT_IN_YAML.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def parse(text: str) -> Override:
    """The override that the shell's `dotted.path=value` means. Raises InputErrors."""
    name, equals, value_text = text.partition("=")
    path = tuple(name.strip().split("."))
    if not equals or not all(path):
        what = "an override is a dotted key, '=' and a value, such as train.epochs=3"
        raise InputErrors([Problem(text or "''", what)])
    value = read_yaml(value_text, text, path)
    if value.problems:
        is_list = value_text.startswith(("{", "["))
        hint = f"put {'all of it' if is_list else 'the value'} in quotes"
        hint += ", so that the shell leaves it whole" if is_list else " if it is text"
        raise InputErrors(Problem(text, f"{problem.what}; {hint}") for problem in value.problems)
    return Override(path, value.data, Place(text), value.places.inside(path).written)


def as_overrides(given: Overrides, problems: list[Problem]) -> list[Override]:
    """Overrides in any of their forms; those with a mistake are left out, and the mistake is added to `problems`."""
    if isinstance(given, str):
        raise InputErrors([Problem("overrides", f"give a list of texts, ['{given}'], or a mapping")])
    if not isinstance(given, Mapping | Sequence) or not all(isinstance(one, str | Override) for one in given):
        what = f"must be a list of texts such as train.epochs=3, or a mapping, not {given!r}"
        raise InputErrors([Problem("overrides", what)])
    if isinstance(given, Mapping):
        found = []
        for key, value in given.items():
            path = tuple(str(key).split("."))
            if (value := plain(value, place := Place("", None, path), problems)) is not OMITTED:
                found += by_key(Override(path, value, place))
        return outer_first(found)
    found = []
    for one in given:
        try:
            found += by_key(parse(one)) if isinstance(one, str) else [one]
        except InputErrors as error:
            problems += error.problems
    return found


def by_key(override: Override) -> list[Override]:
    """An override for each key of a mapping that stands for a section, so that a run keeps the keys it does not name.

    `method: {name: ...}` stays whole, because the options of one method mean nothing to another.

    >>> [one.text for one in by_key(parse("train={epochs: 3, batch_size: 8}"))]
    ['train.epochs=3', 'train.batch_size=8']
    """
    if not is_section(override.path, override.value):
        return [override]
    return [
        Override(
            (*override.path, key),
            value,
            override.place._replace(key=(*override.path, key)),
            {at[1:]: text for at, text in override.written.items() if at[:1] == (key,)},
        )
        for key, value in override.value.items()
    ]


def is_section(path: Sequence[str], value: Any) -> bool:
    """Whether a value at a path is a mapping of a section's keys: of the run, or of a stage."""
    where = path[2:] if path[0] == "stages" else path
    is_whole = list(where) == ["method"] and isinstance(value, dict) and "name" in value
    return len(where) == 1 and where[0] in _SECTIONS and isinstance(value, dict) and not is_whole


def apply(data: dict[str, Any], places: SourceMap, override: Override) -> SourceMap:
    """Set in `data` what the override says; returns the places of the keys after it.

    Raises InputErrors if the path leads nowhere.
    """
    here: Any = data
    path: Key = ()
    for part in override.path[:-1]:
        index = _index(here, part, path, override)
        path = (*path, index)
        here[index] = _opened(here.get(part) if isinstance(here, dict) else here[index], path)
        here = here[index]
    index = _index(here, override.path[-1], path, override)
    path = (*path, index)
    here[index] = override.value
    return places.overridden(path, override.place, override.written)


def outer_first(overrides: Iterable[Override]) -> list[Override]:
    """`method` before `method.weight`, for overrides whose order says nothing."""
    return sorted(overrides, key=lambda override: len(override.path))


def lost(overrides: Sequence[Override]) -> list[Problem]:
    """A mistake for each override that a later one throws away together with what is around it.

    >>> lost([parse("method.weight=0.5"), parse("method=nlora")])[0].what
    'is lost, since method is set after it and replaces all of it; set method.weight after method'
    >>> lost([parse("method=nlora"), parse("method.weight=0.5")])
    []
    """
    problems = []
    for i, one in enumerate(overrides):
        later = overrides[i + 1 :]
        outer = next((o for o in later if o.path == one.path[: len(o.path)]), None)
        if outer is None or _has(outer.value, one.path[len(outer.path) :]):
            continue
        if all(other.path != one.path for other in later):
            what = f"is lost, since {outer.key} is set after it and replaces all of it; set {one.key} after {outer.key}"
            problems.append(one.place.problem(what))
    return problems


def apply_to_stages(
    data: dict[str, Any], tasks_before: Sequence[str | None], overrides: Sequence[Override]
) -> None:
    """Make overrides of the whole run hold for every task: removes from `data["stages"]` what they replace.

    Whoever types `train.epochs=1` means the whole run, and a weight that a file gives one task belongs to the method or
    the penalty that the file names. What an override says of a single stage (`stages.a.train.epochs=2`) stays.

    tasks_before: the names of the tasks before the overrides. With `tasks=[...]` a task leaves the sequence, and its
    stage leaves with it; but a stage that an override itself names stays, and is a mistake.
    """
    stages = data.get("stages")
    if not isinstance(stages, dict):
        return
    paths = [override.path for override in overrides]
    now = task_names(data)
    for name in tasks_before:
        if name not in now and not any(path[:2] == ("stages", name) and path[2:] for path in paths):
            stages.pop(name, None)
    if ("stages",) in paths:  # given as a whole, so meant as it is
        return
    for name, stage in stages.items():
        if isinstance(stage, dict) and ("stages", name) not in paths:
            own = {path[2:] for path in paths if path[:2] == ("stages", name)}
            for path in paths:
                _remove_replaced(stage, path, own)


def take_entries(data: dict[str, Any], before: Sequence[Any]) -> None:
    """Put the file's own entries where an override of `tasks` has their names alone: `tasks=[a, b]` chooses among them.

    before: the entries of `tasks` before the overrides.
    """
    own = {
        entry["name"]: entry
        for entry in before
        if isinstance(entry, dict) and isinstance(entry.get("name"), str)
    }
    if isinstance(tasks := data.get("tasks"), list):
        data["tasks"] = [own.get(entry, entry) if isinstance(entry, str) else entry for entry in tasks]


def task_names(data: Mapping[str, Any]) -> list[str | None]:
    """The names in a configuration's `tasks`, checked or not; None for an entry without one."""
    tasks = data.get("tasks")
    entries = tasks if isinstance(tasks, list) else []
    names = [entry.get("name") if isinstance(entry, dict) else entry for entry in entries]
    return [name if isinstance(name, str) else None for name in names]


def key_of_option(option: str) -> str | None:
    """The key meant by `--train.epochs`, `--learning-rate` or the Trainer's `--num_train_epochs`; else None."""
    key = option.lstrip("-").replace("-", "_")
    if key.partition(".")[0] in Config.model_fields:
        return key
    for section, field_ in Config.model_fields.items():
        kind = field_.annotation
        if kind in (LoraOptions, TrainOptions, EvaluateOptions) and key in kind.model_fields:
            return f"{section}.{key}"
    ours = re.match(r"[\w.]+", named_elsewhere(key) or "")
    return ours[0] if ours else None


def _has(value: Any, path: Sequence[str]) -> bool:
    """Whether a value has something at a path; a text is the name in a short form."""
    for part in path:
        if isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        elif isinstance(value, dict) and part in value:
            value = value[part]
        else:
            return isinstance(value, str) and part == "name"
    return True


def _remove_replaced(stage: dict[str, Any], path: tuple[str, ...], own: set[tuple[str, ...]]) -> None:
    """Removes what an override of the whole run replaces. own: what overrides say of this very stage."""
    section = path[0]
    settings = stage.get(section)
    if section not in {"train", "method"} or not isinstance(settings, dict):
        return
    if len(path) == 1 or path[:2] == ("method", "name"):
        gone = set(settings)
    elif path == ("method", "penalty"):  # a weight is chosen for its penalty
        gone = {"penalty", "weight"}
    else:
        gone = {path[1]}
    for key in gone:
        if (section, key) not in own and (section,) not in own:
            settings.pop(key, None)


def _index(here: Any, part: str, path: Key, override: Override) -> Any:
    """The key or list index that `part` means in `here`, the value at `path`."""
    if isinstance(here, dict):
        return part
    if not isinstance(here, list):
        raise InputErrors(
            [override.place.problem(f"{dotted(path)} is a single value and has no key '{part}'")]
        )
    if part.isdecimal() and int(part) < len(here):
        return int(part)
    places = f"its places are 0 to {len(here) - 1}" if here else "it is empty"
    raise InputErrors([override.place.problem(f"the list {dotted(path)} has no place '{part}'; {places}")])


def _opened(value: Any, path: Key) -> Any:
    """A value that an override reaches into: nothing becomes a mapping, and so do the two short forms."""
    if value is None:
        return {}
    short_form = path == ("method",) or (len(path) == 2 and path[0] == "tasks")
    return {"name": value} if short_form and isinstance(value, str) else value
