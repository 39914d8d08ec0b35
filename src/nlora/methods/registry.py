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

import hashlib
import importlib
import pkgutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import PydanticUndefined

from nlora import methods
from nlora.config.messages import did_you_mean, number_problems, problems_of
from nlora.config.schema import is_method_file
from nlora.config.yaml_positions import Key, SourceMap, dotted
from nlora.errors import InputErrors, Problem
from nlora.methods._outside import (
    UnusableMethodError,
    file_of,
    installed,
    load_file,
    load_installed,
    method_in,
)
from nlora.methods.base import Method

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
    return info_of(find(name, "name", base_folder))


def info_of(kind: type[Method]) -> MethodInfo:
    """The same for a method's class."""
    docstring = sys.modules[kind.__module__].__doc__ or kind.__doc__ or ""
    options = tuple(
        OptionInfo(
            name=key,
            type=_type_name(field.annotation),
            default="required" if field.default is PydanticUndefined else _plain(field.default),
            help=field.description or "",
        )
        for key, field in kind.Options.model_fields.items()
    )
    return MethodInfo(kind.name, docstring.strip().partition("\n")[0], options)


def build(name: str, options: Mapping[str, Any], where: str = "method", base_folder: Path = Path()) -> Method:
    """The method with these options.

    where: the method's key in the configuration. Other parameters as for `find`. Raises InputErrors with every mistake.
    """
    kind = find(name, f"{where}.name", base_folder)
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
    """Places below a dotted key, without a file or a line."""

    def where(self, path: Key) -> str:
        return dotted((self.source, *path))


def find(name: str, where: str = "method.name", base_folder: Path = Path()) -> type[Method]:
    """A method's class.

    name: a built-in method, one of an installed package, or the path of a Python file that defines one.
    where: the key of the name in the configuration. base_folder: where a relative path is looked for if it is not in
    the current folder. Raises InputErrors if the method is unknown or cannot be loaded.
    """
    try:
        return _find(name, base_folder)
    except UnusableMethodError as error:
        raise InputErrors([Problem(where, str(error))]) from error


def version_of(name: str, base_folder: Path) -> dict[str, str]:
    """What identifies the code of a method from outside, for run.yaml: a package's version or a file's digest."""
    if is_method_file(name):
        try:
            path = file_of(name, base_folder)
            return {path.name: f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()[:12]}"}
        except (UnusableMethodError, OSError):  # reported when the method is built
            return {}
    packages = [entry.dist for entry in installed().get(name, []) if entry.dist is not None]
    return {package.name: package.version for package in packages}


def _find(name: str, base_folder: Path) -> type[Method]:
    builtin, others = builtin_names(), installed()
    if is_method_file(name):
        path = file_of(name, base_folder)
        if path.stem in (*builtin, *others):
            raise UnusableMethodError(
                f"{path}: there is a method called '{path.stem}' already; rename the file"
            )
        return load_file(path)
    entries = others.get(name, [])
    sources = [*(["nlora itself"] if name in builtin else []), *(entry.value for entry in entries)]
    if len(sources) > 1:
        raise UnusableMethodError(
            f"'{name}' is defined by {' and '.join(sources)}; uninstall or rename all but one"
        )
    if entries:
        return load_installed(entries[0])
    if not sources:
        names = sorted({*builtin, *others})
        hint = did_you_mean(name, names) or f"; the methods are {', '.join(names)}"
        raise UnusableMethodError(f"unknown method '{name}'{hint}")
    return method_in(importlib.import_module(f"{methods.__name__}.{name}"), name)


def _type_name(annotation: Any) -> str:
    if isinstance(annotation, type):
        return annotation.__name__
    return str(annotation).replace("typing.", "").replace("NoneType", "None")


def _plain(value: Any) -> str:
    return "null" if value is None else str(value)
