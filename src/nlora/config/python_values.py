"""A configuration given as Python values, brought to what a file and the shell say, so that one reader checks all.

as_document({"tasks": ["agnews"], "train": {"epochs": 2}}).places.where(("train",))     # "config: train"
as_overrides({"train.epochs": 3})                                                       # ["train.epochs=3"]
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from numbers import Integral, Real
from pathlib import PurePath
from typing import Any

from nlora.config.yaml_positions import Document, Key, dotted, read_yaml, to_yaml
from nlora.errors import InputErrors, Problem

_SHOWN = "config"
"""How a mistake in a mapping says where it is: nobody wrote lines."""


def as_document(values: Mapping[Any, Any]) -> Document:
    """The mapping as if it had been read from a file, but with mistakes told by their keys alone.

    Tuples and paths may stand for lists and texts. What is of another type is left out, and a mistake.
    """
    problems: list[Problem] = []
    document = read_yaml(to_yaml(_plain(values, (_SHOWN,), problems)), _SHOWN)
    places = replace(document.places, lines={})
    return replace(document, places=places, problems=(*problems, *document.problems))


def as_overrides(overrides: Sequence[str] | Mapping[str, Any]) -> list[str]:
    """`key=value` texts: as they are, or of a mapping of dotted keys to Python values.

    Raises InputErrors where these are of a type that no configuration has.
    """
    if isinstance(overrides, str):
        raise InputErrors([Problem("overrides", f"give a list of texts, ['{overrides}'], or a mapping")])
    if isinstance(overrides, Mapping):
        problems: list[Problem] = []
        plain = {key: _plain(value, (str(key),), problems) for key, value in overrides.items()}
        if problems:
            raise InputErrors(problems)
        return [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in plain.items()]
    return list(overrides)


class _LeftOut:
    """In place of a value that no configuration has."""


def _plain(value: Any, path: Key, problems: list[Problem]) -> Any:
    """None, truth values, numbers, texts, and lists and dictionaries of them, of the types that YAML has."""
    if isinstance(value, Mapping):
        texts = {key: inner for key, inner in value.items() if isinstance(key, str)}
        problems += [
            Problem(_where(path), f"the key {key!r} must be text") for key in value if key not in texts
        ]
        inner = {key: _plain(inner, (*path, key), problems) for key, inner in texts.items()}
        return {key: value for key, value in inner.items() if value is not _LeftOut}
    if isinstance(value, list | tuple):
        items = [_plain(inner, (*path, i), problems) for i, inner in enumerate(value)]
        return [item for item in items if item is not _LeftOut]
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str | PurePath):
        return str(value)
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real) and math.isfinite(value):
        return float(value)
    what = f"is of type {type(value).__name__}; give text, numbers, truth values, lists or mappings"
    if isinstance(value, Real):
        what = f"must be a finite number, not {value}"
    problems.append(Problem(_where(path), what))
    return _LeftOut


def _where(path: Key) -> str:
    """`config: train.epochs`, as mistakes of the configuration are told; an override by its key."""
    return f"{_SHOWN}: {dotted(path[1:])}" if path[0] == _SHOWN and path[1:] else dotted(path)
