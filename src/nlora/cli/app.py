"""The command line: registers the commands, and turns errors into one clear line.

Exit status: 0 done, 2 wrong input or usage, 1 any other failure, 130 stopped from the keyboard.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import gc
import io
import logging
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, NoReturn, TextIO

import typer
from rich.markup import escape

from nlora import __version__
from nlora.cli.analyze import analyze
from nlora.cli.check import check
from nlora.cli.compare import compare
from nlora.cli.cp import cp
from nlora.cli.demo import demo
from nlora.cli.doctor.command import doctor
from nlora.cli.evaluate import evaluate
from nlora.cli.export import export
from nlora.cli.gate import gate
from nlora.cli.group import STOPPED, Commands, Stopped
from nlora.cli.ls import ls
from nlora.cli.predict import predict
from nlora.cli.report import report
from nlora.cli.run import run
from nlora.cli.sweep import sweep
from nlora.errors import InputErrors, NloraError, printable
from nlora.models import processes
from nlora.models.stopping import leave
from nlora.runs.console import TextConsole
from nlora.runs.quiet import quiet
from nlora.runs.signals import stopped_like_ctrl_c

_OUT_OF_MEMORY = (
    "out of memory; nlora check FILE estimates what a run needs and says which keys make it smaller, first of all "
    "train.micro_batch_size and evaluate.batch_size"
)

app = typer.Typer(
    name="nlora",
    cls=Commands,
    help="Teach one language model task after task without forgetting.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (run, demo, check, ls, cp, compare, gate, export, sweep, analyze, report, doctor):
    app.command()(command)
app.command(name="eval")(evaluate)
app.command()(predict)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"nlora {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error, and what other libraries print.")
    ] = False,
) -> None:
    """The options before a command; `main` handles --debug."""


def main() -> None:
    """The console script."""
    # Python looks for garbage before it ends. Among the objects of torch and transformers that takes over a second.
    atexit.register(gc.freeze)
    debug = "--debug" in sys.argv
    if debug:
        # Accepted anywhere on the line, not only before the command.
        sys.argv = [sys.argv[0], "--debug", *(a for a in sys.argv[1:] if a != "--debug")]
    for stream in ("stdout", "stderr"):
        if getattr(sys, stream) is None:  # closed by the caller
            setattr(sys, stream, _nowhere())
        # A name that the output cannot show must not end a run.
        if isinstance(getattr(sys, stream), io.TextIOWrapper):
            getattr(sys, stream).reconfigure(errors="backslashreplace")
    errors = TextConsole(stderr=True)
    try:
        with stopped_like_ctrl_c(), contextlib.nullcontext() if debug else quiet(), _whole_output():
            app(prog_name="nlora")  # also for python -m nlora: the name decides that of the completion
    except NloraError as error:
        if debug:
            traceback.print_exc()
        errors.quiet = not processes.speaks(error)
        count = len(error.problems) if isinstance(error, InputErrors) else 1
        head = "[bold red]error:[/] " if count == 1 else f"[bold red]{count} errors:[/]\n"
        notes = [_OUT_OF_MEMORY] if _is_out_of_memory(error) else getattr(error, "__notes__", [])
        more = "".join(f"\n{note}" for note in notes)
        # A file may have brought characters that steer a terminal.
        said = "\n".join(map(printable, str(error).split("\n")))
        errors.print(head + escape(said) + more, highlight=False, soft_wrap=True)
        _exit(2, error)
    except (Stopped, KeyboardInterrupt) as stopped:  # also of a signal that came on the way out of a command
        errors.quiet = not processes.speaks(stopped)
        errors.print(escape("; ".join(["stopped", *map(str, stopped.args)])), highlight=False, soft_wrap=True)
        _exit(STOPPED, stopped)
    except Exception as error:  # the last line of defense: users see one line, and the rest with --debug
        if debug:
            traceback.print_exc()
        errors.quiet = not processes.speaks(error)
        kind = type(error).__name__
        if processes.lost_process(error):
            errors.print(f"[bold red]error:[/] {processes.LOST}", highlight=False, soft_wrap=True)
            _exit(1, error)
        if _is_out_of_memory(error):
            errors.print(f"[bold red]error:[/] {_OUT_OF_MEMORY}", highlight=False, soft_wrap=True)
            _exit(1, error)
        if refused := _refused(error):
            errors.print(f"[bold red]error:[/] {escape(refused)}", highlight=False, soft_wrap=True)
            try:
                sys.stdout.flush()
            except OSError:  # Python would try again at its end
                sys.stdout = _nowhere()
            _exit(2, error)
        errors.print(
            f"[bold red]internal error:[/] {escape(kind)}: {escape(str(error))}\n"
            "run again with --debug for the traceback",
            highlight=False,
            soft_wrap=True,
        )
        _exit(1, error)


@contextlib.contextmanager
def _whole_output() -> Iterator[None]:
    """Flush what is still buffered when the command ends, so that a full disk is reported like any other error."""
    try:
        yield
    except SystemExit:
        with contextlib.suppress(BrokenPipeError):
            sys.stdout.flush()
        raise


def _nowhere() -> TextIO:
    return Path(os.devnull).open("w", encoding="utf-8")


def _refused(error: Exception) -> str | None:
    """What the system refused and a user can change: a full disk, or a path that may not or cannot be used."""
    if not isinstance(error, OSError):
        return None
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{error.filename or 'the output'} cannot be written: {error.strerror}; free some space"
    if error.errno in (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP) and error.filename:
        return f"{error.filename}: {error.strerror}"
    return None


def _is_out_of_memory(error: Exception) -> bool:
    """Whether Python, a GPU ("CUDA out of memory") or torch on a CPU had too little, as far as the message says."""
    said = str(error)
    return isinstance(error, MemoryError) or "out of memory" in said or "can't allocate memory" in said


def _exit(status: int, error: BaseException) -> NoReturn:
    """Exit; at once if other processes wait for this one, because taking torch down may take seconds."""
    leave(error)
    if processes.several():
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
