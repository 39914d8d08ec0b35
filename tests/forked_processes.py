"""Processes of tests that need not import torch: they are forked from the server from which sweeps fork their runs."""

from __future__ import annotations

import os
import runpy
import signal
import sys
from collections.abc import Callable, Mapping
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from nlora.sweeps.processes import _ensure_server


def forked(
    work: Callable[..., Any],
    *arguments: Any,
    environment: Mapping[str, str],
    out: Path,
    err: Path | None = None,
) -> ForkServerProcess:
    """Start `work(*arguments)` in a process with this environment; what it prints goes to these files.

    work: a function of a module. err: None is `out`. Whoever waits finds the status in `exitcode`, as of `Popen`.
    """
    _ensure_server(environment)
    process = ForkServerProcess(target=_run, args=(work, arguments, dict(environment), out, err))
    process.start()
    return process


def nlora(*arguments: str) -> None:
    """`python -m nlora ARGUMENTS` in this process."""
    sys.argv = ["nlora", *arguments]
    runpy.run_module("nlora", run_name="__main__")


def _run(
    work: Callable[..., Any],
    arguments: tuple[Any, ...],
    environment: dict[str, str],
    out: Path,
    err: Path | None,
) -> None:
    from nlora.sweeps.server_signals import hear_signals  # which the server has imported

    # The server ignores it, and so does what a shell starts in its background.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    hear_signals()
    os.environ.clear()
    os.environ.update(environment)
    for stream, path in ((sys.stdout, out), (sys.stderr, err or out)):
        with path.open("ab") as file:
            os.dup2(file.fileno(), stream.fileno())
    work(*arguments)
