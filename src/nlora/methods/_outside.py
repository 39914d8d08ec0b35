"""Methods from outside nlora: in a file that a configuration names, or in an installed package.

A package declares its methods as entry points. The value is a class, or the module that defines it:

    [project.entry-points."nlora.methods"]
    decay = "my_package.decay:Decay"

User code is imported only when its method is used or described, never to list names.
"""

from __future__ import annotations

import ast
import hashlib
import sys
import traceback
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType

from nlora.methods.base import Method

GROUP = "nlora.methods"


class UnusableMethodError(Exception):
    """Why a method from outside cannot be used: one line that names the file and, if known, its line."""


def installed() -> dict[str, list[EntryPoint]]:
    """The methods of installed packages by name; several under one name if their packages clash."""
    # By name and value, because a package can be on the path more than once.
    distinct = {(entry.name, entry.value): entry for entry in entry_points(group=GROUP)}
    found: dict[str, list[EntryPoint]] = {}
    for (name, _), entry in sorted(distinct.items()):
        found.setdefault(name, []).append(entry)
    return found


def load_installed(entry: EntryPoint) -> type[Method]:
    """The class that an entry point names. Raises UnusableMethodError."""
    where = f"entry point '{entry.name} = {entry.value}'"
    try:
        loaded = entry.load()
    except Exception as error:
        raise UnusableMethodError(f"{where}: {type(error).__name__}: {_one_line(error)}") from error
    if isinstance(loaded, ModuleType):
        loaded = method_in(loaded, where)
    if not (isinstance(loaded, type) and issubclass(loaded, Method)):
        raise UnusableMethodError(f"{where}: is neither a subclass of Method nor a module that defines one")
    loaded.name = entry.name
    return loaded


def file_of(name: str, base_folder: Path) -> Path:
    """The method's file, looked for in the current folder, then in the configuration's, as data files are."""
    path = Path(name).expanduser()
    folders = [Path(), base_folder]
    if found := next((folder / path for folder in folders if (folder / path).is_file()), None):
        return found
    looked = " and ".join(dict.fromkeys(str(folder.resolve()) for folder in folders))
    raise UnusableMethodError(
        f"no such file: {name}" + ("" if path.is_absolute() else f" (looked in {looked})")
    )


def load_file(path: Path) -> type[Method]:
    """The one method that a Python file defines, named after the file. Raises UnusableMethodError."""
    try:
        source = path.read_bytes()
        code = compile(source, str(path), "exec", dont_inherit=True)
    except OSError as error:
        raise UnusableMethodError(f"{path}: cannot be read: {error.strerror}") from error
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None) or 1
        what = getattr(error, "msg", None) or str(error)
        raise UnusableMethodError(f"{path}:{line}: is not Python: {what}") from error
    # The name depends on the contents, so that an edited file is loaded again, and the same file only once.
    digest = hashlib.sha256(str(path.resolve()).encode() + b"\0" + source).hexdigest()[:16]
    module = ModuleType(f"nlora_method_{digest}.{path.stem}")
    if module.__name__ not in sys.modules:
        module.__file__ = str(path)
        sys.modules[module.__name__] = module  # pydantic looks up the types of annotations there
        try:
            exec(code, module.__dict__)
        except BaseException as error:
            del sys.modules[module.__name__]
            if not isinstance(error, Exception):
                raise
            lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
            raise UnusableMethodError(
                f"{path}:{lines[-1] if lines else 1}: {type(error).__name__}: {_one_line(error)}"
            ) from error
    kind = method_in(sys.modules[module.__name__], str(path), source)
    kind.name = path.stem
    return kind


def method_in(module: ModuleType, where: str, source: bytes = b"") -> type[Method]:
    """The only public subclass of Method that a module defines. Raises UnusableMethodError for none or several.

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
        raise UnusableMethodError(f"{where}: defines no subclass of nlora.methods.base.Method")
    if len(kinds) > 1:
        lines = {n.name: n.lineno for n in ast.walk(ast.parse(source)) if isinstance(n, ast.ClassDef)}
        first, second = sorted(kinds, key=lambda name: lines.get(name, 0))[:2]
        at = f":{lines[second]}" if second in lines else ""
        raise UnusableMethodError(
            f"{where}{at}: {second} is a second method after {first}; a module defines one, and helper classes "
            "begin with an underscore"
        )
    return next(iter(kinds.values()))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
