"""All methods by name: the files in this folder, those of installed packages, and files that a configuration names.

>>> method = build("nlora", {"weight": 1e-5})
>>> method.name, method.options.weight
('nlora', 1e-05)
>>> [option.name for option in describe("ewc").options]
['weight', 'samples']

Listing names imports no method, and building a built-in one does not import torch, so `nlora ls` and `nlora check`
start fast.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic_core import PydanticUndefined

from nlora import methods
from nlora.config.messages import problems_in
from nlora.config.outside_code import UnusableCodeError, file_of, is_python_file, version_of_file
from nlora.config.places import SourceMap
from nlora.config.schema import Config
from nlora.errors import InputErrors, Problem, did_you_mean
from nlora.methods._outside import installed, load_file, load_installed, method_in
from nlora.methods.base import AUTO, WEIGHT, Method

_NOT_METHODS = ("base", "contract", "registry")


@dataclass(frozen=True, slots=True)
class OptionInfo:
    """One option of a method as shown to people: its name, type, default and help text."""

    name: str
    type: str
    default: str
    help: str


@dataclass(frozen=True, slots=True)
class MethodInfo:
    """What `nlora ls` says about a method. summary: the first line of its module's docstring."""

    name: str
    summary: str
    options: tuple[OptionInfo, ...]


def builtin_names() -> list[str]:
    """The methods that come with nlora, sorted. Nothing is imported."""
    return sorted(
        module.name
        for module in pkgutil.iter_modules(methods.__path__)
        if module.name not in _NOT_METHODS and not module.name.startswith("_")
    )


def method_names() -> list[str]:
    """All methods that a configuration can name, those of installed packages included, sorted. Nothing is imported."""
    return sorted({*builtin_names(), *installed()})


def describe(name: str, base_folder: Path = Path()) -> MethodInfo:
    """A method's summary and options; its module is imported. Parameters and errors as for `find`."""
    return info_of(find(name, base_folder))


def info_of(kind: type[Method]) -> MethodInfo:
    """The same for a method's class."""
    docstring = sys.modules[kind.__module__].__doc__ or kind.__doc__ or ""
    options = tuple(
        OptionInfo(
            name=key,
            type=_type_name(field.annotation) + (f" | {AUTO}" if key == WEIGHT else ""),
            default="required" if field.default is PydanticUndefined else _plain(field.default),
            help=field.description or "",
        )
        for key, field in kind.Options.model_fields.items()
    )
    return MethodInfo(kind.name, docstring.strip().partition("\n")[0], options)


def build(name: str, options: Mapping[str, Any], base_folder: Path = Path()) -> Method:
    """The method with these options. Parameters as for `find`. Raises InputErrors with every mistake."""
    kind, given = find(name, base_folder), dict(options)
    if problems := problems_in(given, kind.Options, SourceMap(""), ("method",)):
        raise InputErrors(problems)
    method = kind(kind.Options.model_validate(given))
    method.chooses_weight = given.get(WEIGHT) == AUTO
    return method


def with_weight(method: Method, weight: float) -> Method:
    """The same method with another weight. Raises pydantic's ValidationError for one that is not allowed."""
    options = method.options.model_dump(exclude_unset=True) | {WEIGHT: weight}
    return type(method)(method.Options.model_validate(options))


def default_weight(method: Method) -> float:
    """The weight that it has unless one is given; 0 for a method without a number."""
    weight = getattr(method, WEIGHT, None) or getattr(method.options, WEIGHT)
    return weight if isinstance(weight, int | float) else 0.0


def methods_of(config: Config, base_folder: Path) -> list[Method]:
    """The method of each stage of a run: one for all of them, but for stages with options of their own."""
    common = build(config.method.name, config.method.options, base_folder)
    methods = [
        build(config.method.name, config.method_options(task.name), base_folder)
        if task.name in config.stages and config.stages[task.name].method
        else common
        for task in config.tasks
    ]
    for method in methods:
        method.serves_per_task = config.serve is not None
    return methods


def find(name: str, base_folder: Path = Path()) -> type[Method]:
    """A method's class.

    name: a built-in method, one of an installed package, or the path of a Python file that defines one.
    base_folder: where a relative path is looked for if it is not in the current folder. Raises InputErrors if the
    method is unknown or cannot be loaded.
    """
    try:
        return _find(name, base_folder)
    except UnusableCodeError as error:
        raise InputErrors([Problem.at(("method", "name"), str(error))]) from error


def version_of(name: str, base_folder: Path) -> dict[str, str]:
    """What identifies the code of a method from outside, for run.yaml: a package's version or a file's digest."""
    if is_python_file(name):
        return version_of_file(name, (Path(), base_folder))
    packages = [entry.dist for entry in installed().get(name, []) if entry.dist is not None]
    return {package.name: package.version for package in packages}


def _find(name: str, base_folder: Path) -> type[Method]:
    builtin, others = builtin_names(), installed()
    if is_python_file(name):
        path = file_of(name, (Path(), base_folder))
        if path.stem in (*builtin, *others):
            raise UnusableCodeError(
                f"{path}: there is a method called '{path.stem}' already; rename the file"
            )
        return load_file(path)
    entries = others.get(name, [])
    sources = [*(["nlora itself"] if name in builtin else []), *(entry.value for entry in entries)]
    if len(sources) > 1:
        raise UnusableCodeError(
            f"'{name}' is defined by {' and '.join(sources)}; uninstall or rename all but one"
        )
    if entries:
        return load_installed(entries[0])
    if not sources:
        names = sorted({*builtin, *others})
        hint = did_you_mean(name, names) or f"; the methods are {', '.join(names)}"
        raise UnusableCodeError(f"unknown method '{name}'{hint}")
    return method_in(importlib.import_module(f"{methods.__name__}.{name}"), name)


def _type_name(annotation: Any) -> str:
    if isinstance(annotation, type):
        return annotation.__name__
    return str(annotation).replace("typing.", "").replace("NoneType", "None")


def _plain(value: Any) -> str:
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)
