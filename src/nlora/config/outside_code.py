"""Python code from outside nlora that a configuration names: a file, or a function as `file.py:NAME` or `module:NAME`.

>>> Reference.of("./scorers/mine.py:score")
Reference(module='./scorers/mine.py', name='score')
>>> load_function(Reference.of("math:sqrt"), [Path()])(9)
3.0

User code is imported only when it is needed, never to list names.
"""

from __future__ import annotations

import hashlib
import importlib
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path, PurePath
from types import ModuleType
from typing import Any, NamedTuple

from nlora.config.paths import found_in, looked_in
from nlora.errors import did_you_mean


class UnusableCodeError(Exception):
    """Why code from outside cannot be used: one line that names the file and, if known, its line."""


class Reference(NamedTuple):
    """A function of a module. module: its dotted name, or the path of its file."""

    module: str
    name: str

    @classmethod
    def of(cls, text: str) -> Reference:
        """The parts of `file.py:NAME` or `module:NAME`. Raises ValueError for any other text."""
        module, _, name = text.rpartition(":")
        is_module = all(part.isidentifier() for part in module.split("."))
        if not name.isidentifier() or not (is_module or is_python_file(module)):
            raise ValueError(f"'{text}' is neither file.py:FUNCTION nor module:FUNCTION")
        return cls(module, name)

    @property
    def label(self) -> str:
        """What tables call it: `mine.py:score`, wherever the file is."""
        return f"{PurePath(self.module).name if is_python_file(self.module) else self.module}:{self.name}"


def is_python_file(name: str) -> bool:
    """Whether the name of a method or a module is the path of a Python file."""
    return name.endswith(".py") or "/" in name


def file_of(name: str, folders: Sequence[Path]) -> Path:
    """The file, looked for in these folders, as data files are. Raises UnusableCodeError."""
    if found := found_in(folders, name):
        return found
    raise UnusableCodeError(f"no such file: {name}{looked_in(folders, name)}")


def load_file(path: Path) -> tuple[ModuleType, bytes]:
    """The module of a Python file, and its source. Raises UnusableCodeError."""
    try:
        source = path.read_bytes()
        code = compile(source, str(path), "exec", dont_inherit=True)
    except OSError as error:
        raise UnusableCodeError(f"{path}: cannot be read: {error.strerror}") from error
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None) or 1
        what = getattr(error, "msg", None) or str(error)
        raise UnusableCodeError(f"{path}:{line}: is not Python: {what}") from error
    # The name depends on the contents, so that an edited file is loaded again, and the same file only once.
    digest = hashlib.sha256(str(path.resolve()).encode() + b"\0" + source).hexdigest()[:16]
    module = ModuleType(f"nlora_outside_{digest}.{path.stem}")
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
            raise UnusableCodeError(f"{path}:{lines[-1] if lines else 1}: {one_line(error)}") from error
    return sys.modules[module.__name__], source


def version_of_file(name: str, folders: Sequence[Path]) -> dict[str, str]:
    """A file's name with a digest of its contents, for run.yaml; empty if it cannot be read."""
    try:
        path = file_of(name, folders)
        return {path.name: f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()[:12]}"}
    except (UnusableCodeError, OSError):  # reported when the code is loaded
        return {}


def load_function(reference: Reference, folders: Sequence[Path]) -> Callable[..., Any]:
    """The function. folders: where to look for a relative path. Raises UnusableCodeError."""
    if is_python_file(reference.module):
        path = file_of(reference.module, folders)
        module, where = load_file(path)[0], str(path)
    else:
        where = reference.module
        try:
            module = importlib.import_module(reference.module)
        except Exception as error:
            hint = ""
            if isinstance(error, ModuleNotFoundError) and error.name == reference.module:
                hint = f"; a file is named with its suffix: {reference.module}.py:{reference.name}"
            raise UnusableCodeError(f"{where}: {one_line(error)}{hint}") from error
    found = getattr(module, reference.name, None)
    if callable(found):
        return found  # type: ignore[no-any-return]
    if found is not None:
        raise UnusableCodeError(f"{where}: '{reference.name}' is not a function")
    names = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
    raise UnusableCodeError(
        f"{where}: has no function '{reference.name}'{did_you_mean(reference.name, names)}"
    )


def one_line(error: Exception) -> str:
    """`ValueError: what it says`, without line ends."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")
