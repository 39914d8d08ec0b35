"""Python values given in place of YAML, brought to the types that YAML has.

>>> from pathlib import Path
>>> problems = []
>>> plain({"data": Path("bench"), "seed": 7, "tasks": ("agnews", object())}, Place("config"), problems)
{'data': 'bench', 'seed': 7, 'tasks': ['agnews']}
>>> print(problems[0])
config: tasks.1: is of type object; give text, numbers, truth values, lists or mappings
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from numbers import Integral, Real
from pathlib import PurePath
from typing import Any

from nlora.config.characters import half_problem
from nlora.config.places import Place
from nlora.config.yaml_positions import by_label, names_labels
from nlora.errors import Problem

OMITTED = object()
"""In place of a value that no configuration has."""


def plain(value: Any, place: Place, problems: list[Problem]) -> Any:
    """None, truth values, numbers, texts, and lists and dictionaries of these.

    Tuples may stand for lists, and paths for texts. A value of another type is left out, with a mistake at its place.
    """
    if isinstance(value, Mapping):
        if names_labels(place.key):
            value = by_label(value)
        wrong = [key for key in value if not isinstance(key, str)]
        problems += [place.problem(f"the key {key!r} must be text") for key in wrong]
        inner = {k: plain(v, _below(place, k), problems) for k, v in value.items() if isinstance(k, str)}
        return {key: value for key, value in inner.items() if value is not OMITTED}
    if isinstance(value, list | tuple):
        items = [plain(item, _below(place, i), problems) for i, item in enumerate(value)]
        return [item for item in items if item is not OMITTED]
    if type(value).__module__ == "numpy" and getattr(value, "shape", None) == ():  # its bool_ is no bool
        value = value.item()
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str | PurePath):
        # Of a text that is a member of an Enum, str gives the name.
        value = str.__str__(value) if isinstance(value, str) else str(value)
        what = half_problem(value)
    elif isinstance(value, Integral):
        value = int(value)
        digits = sys.get_int_max_str_digits()
        what = f"is a number of more than {digits} digits" if _is_unprintable(value) else None
    elif isinstance(value, Real):
        value = _float(value)
        what = None if math.isfinite(value) else f"must be a finite number, not {value}"
    else:
        what = f"is of type {type(value).__name__}; give text, numbers, truth values, lists or mappings"
    if what is None:
        return value
    problems.append(place.problem(what))
    return OMITTED


def _is_unprintable(value: int) -> bool:
    try:
        str(value)
    except ValueError:
        return True
    return False


def _float(value: Real) -> float:
    try:
        return float(value)
    except OverflowError:  # a fraction of large whole numbers
        return math.inf


def _below(place: Place, key: str | int) -> Place:
    return place._replace(key=(*place.key, key))
