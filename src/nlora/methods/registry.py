"""The methods, found by the names of the files in this folder.

    method_names()                                   # ["inclora", "nlora", "seqlora"]
    describe("nlora").options                        # name, type, default and help text of each option
    method = build("nlora", {"weight": 1e-5})        # checked; raises InputErrors with every mistake

Listing does not import a method, and building one does not import torch: `nlora ls` and a configuration's
check answer at once.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from pydantic import ValidationError
from pydantic_core import PydanticUndefined

from nlora import methods
from nlora.config.messages import number_problems, problems_of
from nlora.config.yaml_positions import Key, SourceMap, dotted
from nlora.errors import InputErrors, Problem, did_you_mean
from nlora.methods.base import Method


@dataclass(frozen=True, slots=True)
class OptionInfo:
    """One option of a method, for people: its name, type, default and help text."""

    name: str
    type: str
    default: str
    help: str


@dataclass(frozen=True, slots=True)
class MethodInfo:
    """What `nlora ls` says of a method. summary: the first line of its module's docstring."""

    name: str
    summary: str
    options: tuple[OptionInfo, ...]


def method_names() -> list[str]:
    """All methods by name, sorted. Nothing is imported."""
    return sorted(
        module.name
        for module in pkgutil.iter_modules(methods.__path__)
        if module.name not in ("base", "registry") and not module.name.startswith("_")
    )


def describe(name: str) -> MethodInfo:
    """A method's summary and options. Raises InputErrors for an unknown name."""
    kind = _method_class(name, "name")
    source = files(methods).joinpath(f"{name}.py").read_text(encoding="utf-8")
    docstring = ast.get_docstring(ast.parse(source)) or ""
    options = tuple(
        OptionInfo(
            name=key,
            type=_type_name(field.annotation),
            default="required" if field.default is PydanticUndefined else _plain(field.default),
            help=field.description or "",
        )
        for key, field in kind.Options.model_fields.items()
    )
    return MethodInfo(name, docstring.partition("\n")[0], options)


def build(name: str, options: Mapping[str, Any], where: str = "method") -> Method:
    """The method of that name with these options.

    Raises InputErrors with every mistake; `where` is the key of the configuration that the method stands at.
    """
    kind = _method_class(name, f"{where}.name")
    places = _Under(where)
    problems = number_problems(dict(options), kind.Options, places)
    try:
        checked = kind.Options.model_validate(dict(options))
    except ValidationError as error:
        problems += problems_of(error, kind.Options, places)
    if problems:
        raise InputErrors(dict.fromkeys(problems))
    return kind(checked)


@dataclass(frozen=True, slots=True)
class _Under(SourceMap):
    """Places below a dotted key, where no file and no line is known."""

    def where(self, path: Key) -> str:
        return dotted((self.source, *path))


def _method_class(name: str, where: str) -> type[Method]:
    names = method_names()
    if name not in names:
        hint = did_you_mean(name, names) or f"; the methods are {', '.join(names)}"
        raise InputErrors([Problem(where, f"unknown method '{name}'{hint}")])
    module = importlib.import_module(f"{methods.__name__}.{name}")
    kinds = [
        kind
        for _, kind in inspect.getmembers(module, inspect.isclass)
        if issubclass(kind, Method) and kind.__module__ == module.__name__
    ]
    assert len(kinds) == 1, f"{module.__name__} should define one subclass of Method, not {len(kinds)}"
    return kinds[0]


def _type_name(annotation: Any) -> str:
    if isinstance(annotation, type):
        return annotation.__name__
    return str(annotation).replace("typing.", "").replace("NoneType", "None")


def _plain(value: Any) -> str:
    return "null" if value is None else str(value)
