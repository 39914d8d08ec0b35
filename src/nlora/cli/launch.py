"""`--processes N`: starts the same command as several processes on this machine, with torchrun's launcher.

torchrun would follow an error of ours with forty lines of its own. Here the first process that fails tells the user,
and the launcher only passes the exit status on; it speaks for a process that was killed.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from nlora.cli.group import STOPPED
from nlora.errors import InputErrors, Problem, killed_by
from nlora.models.launchers import BY_NLORA, cores, from_slurm, launch_of
from nlora.runs.console import TextConsole

Processes = Annotated[
    int,
    typer.Option(
        "--processes",
        min=1,
        help="Processes on this machine that share the run, one for each GPU; the result is the same.",
    ),
]
_SET_PARENT_DEATH_SIGNAL = 1  # prctl(2)
_PATIENCE_SECONDS = 600
"""How long processes that were asked to stop may take for the current step and its save."""


def launch(processes: int, arguments: Sequence[str]) -> None:
    """Run `nlora` with these arguments in several processes, and exit with their status.

    Raises InputErrors if a launcher has started this process, too.
    """
    if launch_of({**os.environ, **from_slurm(os.environ)}) is not None:
        what = "a launcher has started several processes already; leave out --processes, or the launcher"
        raise InputErrors([Problem("--processes", what)])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // processes)))
    os.environ[BY_NLORA] = "1"
    os.environ["PET_SIGNALS_TO_HANDLE"] = ",".join(
        _signals()
    )  # torchrun's options, which torch 2.8 does not have
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(_PATIENCE_SECONDS))
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    debug = ["--debug"] if "--debug" in sys.argv else []
    if not debug:
        logging.disable()
    torchrun: Any = run  # not typed
    options = ["--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", str(processes)]
    try:
        torchrun.run(torchrun.parse_args([*options, "-m", "nlora", *debug, *arguments]))
    except ChildFailedError as error:
        _exit_like(error.failures)
    except SignalException as stop:  # it has passed the signal on, and a process has said what is kept
        raise typer.Exit(STOPPED) from stop
    raise typer.Exit


def _signals() -> list[str]:
    """What torchrun passes on. It would also undo that nohup ignores SIGHUP, and a shell SIGINT in the background."""
    names = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
    known = {name: signal.getsignal(getattr(signal, name)) for name in names if hasattr(signal, name)}
    return [name for name, handler in known.items() if handler != signal.SIG_IGN]


def _exit_like(failures: Mapping[int, Any]) -> None:
    """Exit with the status of the process that failed; say so if it was killed and could not say anything."""
    # The launcher has stopped the others.
    stopped = (-signal.SIGTERM, STOPPED)
    codes = {rank: failure.exitcode for rank, failure in failures.items() if failure.exitcode not in stopped}
    for rank, code in codes.items():
        if code < 0:
            text = (
                f"[bold red]error:[/] process {rank} was {killed_by(-code)}; the same command resumes the run"
            )
            TextConsole(stderr=True).print(text, highlight=False, soft_wrap=True)
            raise typer.Exit(1)
    raise typer.Exit(max(codes.values(), default=STOPPED))


def end_with_launcher() -> None:
    """If `launch` started this process, and is killed, the system sends SIGTERM to this process. On Linux only."""
    if BY_NLORA in os.environ and sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGTERM)
