"""Overrides of single keys: `train.epochs=3`, `tasks=[agnews, yahoo]`, `tasks.0.name=sst`.

    places = apply_override(data, places, "train.learning_rate=5e-4")   # changes data in place

The value is YAML, as in the file: numbers, lists, null and quotes mean the same.
"""

from __future__ import annotations

import re
from typing import Any

from nlora.config.other_names import named_elsewhere
from nlora.config.schema import Config, EvaluateOptions, LoraOptions, TrainOptions
from nlora.config.yaml_positions import Key, SourceMap, dotted, read_yaml
from nlora.errors import Problem


def apply_override(data: dict[str, Any], places: SourceMap, text: str) -> SourceMap | list[Problem]:
    """Set in `data` what one override says.

    text: `dotted.path=value`; a number in the path is a place in a list, from 0.
    Returns the places of the keys after it, or, with `data` left as it is, what is wrong with the override.
    """
    name, equals, value_text = text.partition("=")
    parts = name.strip().split(".")
    if not equals or not all(parts):
        return [Problem(text, "an override is a dotted key, '=' and a value, such as train.epochs=3")]
    value = read_yaml(value_text, text)
    if value.problems:
        return [
            Problem(text, f"{problem.what}; put the value in quotes if it is text")
            for problem in value.problems
        ]
    here: Any = data
    path: Key = ()
    for part in parts[:-1]:
        key = _key(here, part)
        if key is None:
            return [_no_such_place(here, part, path, text)]
        path = (*path, key)
        here[key] = _opened(here[key] if isinstance(here, list) else here.get(key), path)
        here = here[key]
    key = _key(here, parts[-1])
    if key is None:
        return [_no_such_place(here, parts[-1], path, text)]
    here[key] = value.data
    return places.overridden((*path, key), text, value.places.written)


def key_of_option(option: str) -> str | None:
    """The key that is meant by `--train.epochs`, `--learning-rate` or the Trainer's `--num_train_epochs`; else None."""
    key = option.lstrip("-").replace("-", "_")
    if key.partition(".")[0] in Config.model_fields:
        return key
    for section, field in Config.model_fields.items():
        kind = field.annotation
        if kind in (LoraOptions, TrainOptions, EvaluateOptions) and key in kind.model_fields:
            return f"{section}.{key}"
    ours = re.match(r"[\w.]+", named_elsewhere(key) or "")
    return ours[0] if ours else None


def _key(here: Any, part: str) -> Any:
    """The key or index that `part` means in `here`; None where there is none."""
    if isinstance(here, list):
        return int(part) if part.isdecimal() and int(part) < len(here) else None
    return part if isinstance(here, dict) else None


def _no_such_place(here: Any, part: str, path: Key, text: str) -> Problem:
    if not isinstance(here, list):
        return Problem(text, f"{dotted(path)} is a single value and has no key '{part}'")
    there = f"its places are 0 to {len(here) - 1}" if here else "it is empty"
    return Problem(text, f"the list {dotted(path)} has no place '{part}'; {there}")


def _opened(value: Any, path: Key) -> Any:
    """A value that an override reaches into: nothing becomes a mapping, and so do the two short forms."""
    if value is None:
        return {}
    short_form = path == ("method",) or (len(path) == 2 and path[0] == "tasks")
    return {"name": value} if short_form and isinstance(value, str) else value
