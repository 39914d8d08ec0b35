"""What the shell offers after the Tab key, once `nlora --install-completion` has set it up.

Where nothing is offered, bash completes the names of files.
"""

from __future__ import annotations

import glob
from collections.abc import Iterable

import typer

LISTS = ("recipes", "methods", "data", "options")
"""What `nlora ls` can list."""

_RUN_DEPTH = 3
"""`runs/demo/nlora` is a run of the demo."""


def recipes(incomplete: str) -> list[str]:
    """Names of recipes."""
    from nlora.config.load import recipe_names

    return _starting(recipe_names(), incomplete)


def sources(incomplete: str) -> list[str]:
    """Names of recipes, and YAML files."""
    return [*recipes(incomplete), *sorted(glob.glob(f"{glob.escape(incomplete)}*.yaml"))]  # noqa: PTH207 - keeps "./"


def runs(incomplete: str) -> list[str]:
    """Folders of runs below what is typed, or in `runs` if nothing is."""
    from nlora.runs.layout import RUN_FILE

    begun = glob.escape(incomplete or "runs/")
    found = (glob.glob(f"{begun}{'*/' * depth}{RUN_FILE}") for depth in range(1, _RUN_DEPTH + 1))  # noqa: PTH207
    return sorted(path.removesuffix(f"/{RUN_FILE}") for paths in found for path in paths)


def overrides(ctx: typer.Context, incomplete: str) -> list[str]:
    """The methods after `method=`; in bash, `=` and what follows it are words of their own."""
    from nlora.methods.registry import method_names

    before = [word for word in ctx.params.get("overrides") or () if word != "="]
    if before[-1:] == ["method"]:
        return _starting(method_names(), incomplete)
    return _starting((f"method={name}" for name in method_names()), incomplete) if "=" in incomplete else []


def lists(incomplete: str) -> list[str]:
    """What `nlora ls` can list."""
    return _starting(LISTS, incomplete)


def _starting(names: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]
