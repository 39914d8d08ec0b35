"""The methods as plug-ins: files of the folder `methods`, imported by name once a configuration names one.

>>> method_problem("nlroa")
"unknown method 'nlroa'; did you mean 'nlora'?"
>>> list(options_of("olora").model_fields)
['weight', 'norm', 'norm_weight']

A method's file imports torch only in its functions, so that options can be checked quickly.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from nlora.errors import did_you_mean

_FOLDER = Path(__file__).parents[1] / "methods"
_NO_METHODS = ("base", "registry")


def method_names() -> list[str]:
    """All methods by name, sorted. Nothing is imported."""
    modules = [module.name for module in pkgutil.iter_modules([str(_FOLDER)])]
    return sorted(name for name in modules if name not in _NO_METHODS and not name.startswith("_"))


def method_problem(name: str) -> str | None:
    """What to say about the name of a method that does not exist."""
    names = method_names()
    if name in names:
        return None
    hint = did_you_mean(name, names) or f"; the methods are {', '.join(names)}"
    return f"unknown method '{name}'{hint}"


def method_class(name: str) -> Any:
    """The one class with Options that a method's file defines."""
    module = importlib.import_module(f"nlora.methods.{name}")
    own = [c for _, c in inspect.getmembers(module, inspect.isclass) if c.__module__ == module.__name__]
    kinds = [kind for kind in own if hasattr(kind, "Options")]
    assert len(kinds) == 1, f"{module.__name__} should define one subclass of Method, not {len(kinds)}"
    return kinds[0]


def options_of(name: str) -> type[BaseModel]:
    """The model of a method's own options."""
    options: type[BaseModel] = method_class(name).Options
    return options
