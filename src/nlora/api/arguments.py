"""Arguments of Python where the command line has options."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from nlora.errors import InputErrors

_ARGUMENTS = {"--as": "form", "OUT": "out"}
"""What the command line calls otherwise."""


@contextmanager
def quiet_python() -> Iterator[None]:
    """Silence other libraries, and report mistakes in options (`--max-drop`) as mistakes in arguments (`max_drop`)."""
    from nlora.runs.quiet import quiet

    try:
        with quiet():
            yield
    except InputErrors as error:
        raise InputErrors(replace(p, source=_argument(p.source)) for p in error.problems) from None


def _argument(source: str) -> str:
    """The argument of Python that an option of the command line is; any other source as it is."""
    named = source.removeprefix("--").replace("-", "_") if source.startswith("--") else source
    return _ARGUMENTS.get(source, named)
