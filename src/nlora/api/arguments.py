"""Arguments of Python where the command line has options."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from nlora.config.paths import expanded
from nlora.errors import InputErrors, Problem

_ARGUMENTS = {"--as": "form", "OUT": "out"}
"""What the command line calls otherwise."""


@contextmanager
def quiet_python() -> Iterator[None]:
    """Silence other libraries, and report mistakes in options (`--max-drop`) as mistakes in arguments (`max_drop`).

    What the host has set in torch does not count.
    """
    from nlora.models.host_modes import own_modes
    from nlora.runs.quiet import quiet

    try:
        with quiet(), own_modes():
            yield
    except InputErrors as error:
        raise InputErrors(replace(p, source=_argument(p.source)) for p in error.problems) from None


def folder_of(value: Any, name: str) -> Path:
    """A path from Python. name: of the argument. Raises InputErrors if it is none."""
    if not isinstance(value, str | os.PathLike):
        raise InputErrors([Problem(name, f"must be a path, not {value!r:.100}")])
    return expanded(value)


def _argument(source: str) -> str:
    """The argument of Python that an option of the command line is; any other source as it is."""
    named = source.removeprefix("--").replace("-", "_") if source.startswith("--") else source
    return _ARGUMENTS.get(source, named)
