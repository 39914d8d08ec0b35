"""Pydantic's errors in plain words, with the key and its line.

>>> from nlora.config.train_options import TrainOptions
>>> for problem in problems_in({"epochs": "ten", "epoch": 1}, TrainOptions, SourceMap("my.yaml"), ("train",)):
...     print(problem)
my.yaml: train.epochs: must be a number > 0, not 'ten'
my.yaml: train.epoch: unknown key; did you mean 'epochs'?

The words are made from the fields themselves (type, bounds, description), so they cover a method's own options too.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from functools import partial
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

import annotated_types as at
from pydantic import BaseModel, ValidationError

from nlora.config.other_names import named_elsewhere
from nlora.config.places import SourceMap
from nlora.errors import Key, Problem, did_you_mean


def problems_in(
    values: Any,
    model: type[BaseModel],
    places: SourceMap,
    at: Key = (),
    counts: Callable[[Key], bool] = lambda path: True,
) -> list[Problem]:
    """Every mistake in values that should make up a model; empty if `model.model_validate(values)` succeeds.

    at: the key of the values in the file, ("train",) for those of `train`. counts: which paths in the values to report.
    """
    found: list[Problem] = []

    def report(path: Key, what: Callable[[str | None], str]) -> None:
        if counts(path):
            key = (*at, *path)
            found.append(places.problem(key, what(places.written_at(key))))

    for path, value in _leaves(values):
        spec = _spec(model, path)
        # Numbers that Python accepts and we do not: true for 1, and infinity.
        if _plain(spec.annotation) in (int, float) and (isinstance(value, bool) or _is_infinite(value)):
            report(path, partial(_must_be, spec, value))
    try:
        model.model_validate(values)
    except ValidationError as error:
        for detail in error.errors(include_url=False):
            if not _reported_elsewhere(detail):
                report(detail["loc"], partial(_what, detail, model))
    return list(dict.fromkeys(found))


def first_problem(error: ValidationError) -> str:
    """`tasks.0: must be a list (and 2 more)`: what is wrong in a file that nlora wrote, and nobody should edit."""
    first, others = error.errors(include_url=False)[0], error.error_count() - 1
    key = ".".join(map(str, first["loc"]))
    what = first["msg"].removeprefix("Value error, ")
    return f"{key}: {what}".removeprefix(": ") + (f" (and {others} more)" if others else "")


def _is_infinite(value: Any) -> bool:
    """Whether a number, or a text that pydantic would read as one, is infinite or not a number."""
    try:
        return isinstance(value, float | str) and not math.isfinite(float(value))
    except ValueError:
        return False


def _reported_elsewhere(detail: Any) -> bool:
    """Whether another problem covers this one: a key that is not text, a list that lacks its wrong items."""
    if detail["type"] == "too_short":
        return len(detail["input"]) >= int(detail["ctx"]["min_length"])
    return detail["type"] == "invalid_key" or "[key]" in detail["loc"]


class _Spec(NamedTuple):
    """What a field declares about itself."""

    annotation: Any = Any
    bounds: tuple[Any, ...] = ()
    description: str = ""
    required: bool = True


def _spec(model: type[BaseModel], path: Key) -> _Spec:
    """What the model declares about the value at `path`; an empty _Spec if nothing."""
    spec = _Spec(model)
    for part in path:
        plain = _plain(spec.annotation)
        if inner := _model_in(plain):
            field = inner.model_fields.get(str(part))
            if field is None:
                return _Spec()
            required = field.is_required()
            spec = _Spec(field.annotation, tuple(field.metadata), field.description or "", required)
        elif get_origin(plain) in (tuple, list, dict):
            spec = _Spec(get_args(plain)[1 if get_origin(plain) is dict else 0])
        else:
            return _Spec()
    return spec


def _what(detail: Any, model: type[BaseModel], written: str | None) -> str:
    path: Key = detail["loc"]
    kind = detail["type"]
    spec = _spec(model, path)
    if kind == "extra_forbidden":
        return _unknown_key(model, path)
    if kind == "missing":
        description = spec.description.rstrip(".")
        return "the key is missing" + (f": {description[0].lower()}{description[1:]}" if description else "")
    if kind == "value_error":
        return str(detail["ctx"]["error"])
    if kind == "string_pattern_mismatch" and path[-1:] == ("name",):
        return f"must be usable in a folder's name, without / or \\, not {_shown(detail['input'], None)}"
    return _must_be(spec, detail["input"], written)


def _must_be(spec: _Spec, value: Any, written: str | None) -> str:
    hint = ""
    if (choices := _choices(spec.annotation)) and isinstance(value, str):
        hint = did_you_mean(value, choices)
    elif value is None and not spec.required:
        hint = "; leave the key out for its default"
    elif get_origin(_plain(spec.annotation)) is tuple and isinstance(value, str) and value.strip():
        hint = f"; write [{', '.join(re.findall(r'[^ ,]+', value))}]"
    elif _plain(spec.annotation) is str and not isinstance(value, str | list | dict | NoneType):
        hint = "; put it in quotes"
    expected = _expected(spec.annotation, spec.bounds)
    if isinstance(value, float) and not math.isfinite(value):
        expected = expected.replace("a number", "a finite number")
    return f"must be {expected}, not {_shown(value, written)}{hint}"


def _unknown_key(model: type[BaseModel], path: Key) -> str:
    key = str(path[-1])
    owner = _model_in(_spec(model, path[:-1]).annotation)
    known = list(owner.model_fields) if owner else []
    if len(path) > 1 and key in model.model_fields:
        return f"unknown key; did you mean '{key}' at the top level?"
    if theirs := named_elsewhere(key):
        return f"unknown key; use {theirs}"
    for section, field in model.model_fields.items():
        inner = _model_in(field.annotation)
        if inner and key in inner.model_fields:
            return f"unknown key; did you mean '{section}.{key}'?"
    return "unknown key" + (did_you_mean(key, known) or f"; known here: {', '.join(known) or 'none'}")


def _plain(annotation: Any) -> Any:
    """The annotation without its `| None`."""
    if get_origin(annotation) in (Union, UnionType):
        others = [argument for argument in get_args(annotation) if argument is not NoneType]
        return others[0] if len(others) == 1 else annotation
    return annotation


def _model_in(annotation: Any) -> type[BaseModel] | None:
    plain = _plain(annotation)
    return plain if isinstance(plain, type) and issubclass(plain, BaseModel) else None


def _choices(annotation: Any) -> tuple[str, ...]:
    plain = _plain(annotation)
    return tuple(map(str, get_args(plain))) if get_origin(plain) is Literal else ()


def _expected(annotation: Any, bounds: tuple[Any, ...] = ()) -> str:
    """`a whole number >= 1, or null`."""
    plain = _plain(annotation)
    if choices := _choices(plain):
        words = choices[0] if len(choices) == 1 else f"{', '.join(choices[:-1])} or {choices[-1]}"
    elif inner := _model_in(plain):
        words = "a name or a mapping of keys" if "name" in inner.model_fields else "a mapping of keys"
    elif get_origin(plain) in (tuple, list):
        items = get_args(plain)[0]
        words = "a list" + (
            " of texts" if items is str else f" of {_expected(items)}" if _choices(items) else ""
        )
    elif get_origin(plain) is dict:
        words = "a mapping of keys"
    elif get_origin(plain) in (Union, UnionType):
        words = " or ".join(_expected(one) for one in get_args(plain) if one is not NoneType)
    else:
        names = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
        words = names.get(plain, "something else")
    words += _bounds(bounds)
    return f"{words}, or null" if plain is not annotation else words


def _bounds(bounds: tuple[Any, ...]) -> str:
    """` >= 0 and < 1`, ` that is not empty`, or nothing."""
    signs = ((at.Ge, "ge", ">="), (at.Gt, "gt", ">"), (at.Le, "le", "<="), (at.Lt, "lt", "<"))
    limits = [
        f"{sign} {getattr(bound, name)}"
        for bound in bounds
        for kind, name, sign in signs
        if isinstance(bound, kind)
    ]
    if any(isinstance(bound, at.MinLen) for bound in bounds):
        return " that is not empty"
    return f" {' and '.join(limits)}" if limits else ""


def _shown(value: Any, written: str | None) -> str:
    """A value as the user wrote it, shortened."""
    if value is None:
        return "null"
    if isinstance(value, dict):
        return "a mapping" if value else "an empty mapping"
    if isinstance(value, list | tuple):
        return "a list" if value else "an empty list"
    if isinstance(value, bool) and written is None:
        return str(value).lower()
    text = written if written is not None else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _leaves(values: Any, path: Key = ()) -> Iterator[tuple[Key, Any]]:
    if isinstance(values, dict):
        for key, value in values.items():
            yield from _leaves(value, (*path, key))
    elif isinstance(values, list | tuple):
        for index, value in enumerate(values):
            yield from _leaves(value, (*path, index))
    else:
        yield path, values
