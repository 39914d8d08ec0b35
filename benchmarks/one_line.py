"""How a benchmark ends where its input is wrong: one line says what, the exit status is 2, no traceback is shown."""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from nlora.errors import NloraError

P = ParamSpec("P")
T = TypeVar("T")


def one_line_errors(main: Callable[P, T]) -> Callable[P, T]:
    """A benchmark's `main` that tells nlora's and the system's errors. Any other is a mistake of the benchmark itself.

    A command that it started and that failed has told why, unless a signal ended it.
    """

    @functools.wraps(main)
    def told(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return main(*args, **kwargs)
        except (NloraError, OSError, subprocess.CalledProcessError) as error:
            if not isinstance(error, subprocess.CalledProcessError) or error.returncode < 0:
                print(f"error: {error}", file=sys.stderr)
            raise SystemExit(2) from error

    return told
