"""Methods from outside nlora: in a file that a configuration names, or in an installed package.

A package declares its methods as entry points. The value is a class, or the module that defines it:

    [project.entry-points."nlora.methods"]
    decay = "my_package.decay:Decay"

User code is imported only when its method is used or described, never to list names.
"""

from __future__ import annotations

import ast
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType

from nlora.config import outside_code
from nlora.config.outside_code import UnusableCodeError, one_line
from nlora.methods.base import Method

GROUP = "nlora.methods"


def installed() -> dict[str, list[EntryPoint]]:
    """The methods of installed packages by name; several under one name if their packages clash."""
    # By name and value, because a package can be on the path more than once.
    distinct = {(entry.name, entry.value): entry for entry in _declared()}
    found: dict[str, list[EntryPoint]] = {}
    for (name, _), entry in sorted(distinct.items()):
        found.setdefault(name, []).append(entry)
    return found


@cache
def _declared() -> tuple[EntryPoint, ...]:
    """Looked up once in a process, because it reads what every installed package declares."""
    return tuple(entry_points(group=GROUP))


def load_installed(entry: EntryPoint) -> type[Method]:
    """The class that an entry point names. Raises UnusableCodeError."""
    where = f"entry point '{entry.name} = {entry.value}'"
    try:
        loaded = entry.load()
    except Exception as error:
        raise UnusableCodeError(f"{where}: {one_line(error)}") from error
    if isinstance(loaded, ModuleType):
        loaded = method_in(loaded, where)
    if not (isinstance(loaded, type) and issubclass(loaded, Method)):
        raise UnusableCodeError(f"{where}: is neither a subclass of Method nor a module that defines one")
    loaded.name = entry.name
    return loaded


def load_file(path: Path) -> type[Method]:
    """The one method that a Python file defines, named after the file. Raises UnusableCodeError."""
    module, source = outside_code.load_file(path)
    kind = method_in(module, str(path), source)
    kind.name = path.stem
    return kind


def method_in(module: ModuleType, where: str, source: bytes = b"") -> type[Method]:
    """The only public subclass of Method that a module defines. Raises UnusableCodeError for none or several.

    source: of the module, if the message should give line numbers.
    """
    kinds = {
        kind.__name__: kind
        for kind in vars(module).values()
        if isinstance(kind, type)
        and issubclass(kind, Method)
        and kind.__module__ == module.__name__
        and not kind.__name__.startswith("_")
    }
    if not kinds:
        raise UnusableCodeError(f"{where}: defines no subclass of nlora.methods.base.Method")
    if len(kinds) > 1:
        lines = {n.name: n.lineno for n in ast.walk(ast.parse(source)) if isinstance(n, ast.ClassDef)}
        first, second = sorted(kinds, key=lambda name: lines.get(name, 0))[:2]
        at = f":{lines[second]}" if second in lines else ""
        raise UnusableCodeError(
            f"{where}{at}: {second} is a second method after {first}; a module defines one, and helper classes "
            "begin with an underscore"
        )
    return next(iter(kinds.values()))
