"""The methods, found by the names of the files in this folder.

>>> method_names()[:3]
['disjoint', 'ella', 'ewc']
>>> describe("nlora").options[0].name
'penalty'
>>> build("nlora", {"weight": 1e-5}).weight
1e-05

Listing does not import a method, and building one does not import torch: `nlora ls` and `nlora check` answer quickly.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from pydantic_core import PydanticUndefined

from nlora import methods
from nlora.config.messages import problems_in
from nlora.config.method_options import method_class, method_names, method_problem
from nlora.config.yaml_positions import SourceMap
from nlora.errors import InputErrors, Problem
from nlora.methods.base import Method

__all__ = ["MethodInfo", "OptionInfo", "build", "describe", "method_names"]


@dataclass(frozen=True, slots=True)
class OptionInfo:
    """One option of a method: its name, type, default and help text."""

    name: str
    type: str
    default: str
    help: str


@dataclass(frozen=True, slots=True)
class MethodInfo:
    """What `nlora ls` shows of a method. summary: the first line of its module's docstring."""

    name: str
    summary: str
    options: tuple[OptionInfo, ...]


def describe(name: str) -> MethodInfo:
    """A method's summary and options. Raises InputErrors for an unknown name."""
    kind = _method_class(name)
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


def build(name: str, options: Mapping[str, Any]) -> Method:
    """The method of that name with these options. Raises InputErrors with every mistake."""
    kind = _method_class(name)
    if problems := problems_in(dict(options), kind.Options, SourceMap(""), ("method",)):
        raise InputErrors(problems)
    return kind(kind.Options.model_validate(dict(options)))


def _method_class(name: str) -> type[Method]:
    if wrong := method_problem(name):
        raise InputErrors([Problem.at(("method", "name"), wrong)])
    kind: type[Method] = method_class(name)
    return kind


def _type_name(annotation: Any) -> str:
    if isinstance(annotation, type):
        return annotation.__name__
    return str(annotation).replace("typing.", "").replace("NoneType", "None")


def _plain(value: Any) -> str:
    return "null" if value is None else str(value)
