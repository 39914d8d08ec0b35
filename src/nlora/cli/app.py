"""The command line: parsing, and turning errors into one clear line. What the commands do is in `commands`.

Exit status: 0 done, 2 wrong input or usage, 1 anything else; 130 when stopped from the keyboard.
"""

from __future__ import annotations

import sys
import traceback
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from nlora import __version__
from nlora.cli.analyze import analyze
from nlora.cli.ask import asking
from nlora.cli.group import Commands, Stopped
from nlora.cli.signals import ended_like_ctrl_c
from nlora.errors import InputErrors, NloraError

app = typer.Typer(
    name="nlora",
    cls=Commands,
    help="Teach one language model task after task without forgetting.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...",
        help="Overrides by dotted path, as train.learning_rate=5e-4 seed=1.",
        show_default=False,
    ),
]
Source = Annotated[
    str, typer.Argument(metavar="RECIPE-OR-FILE", help="A recipe's name (see nlora ls) or a YAML file.")
]


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
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """The options before a command; `main` handles --debug."""


@app.command()
def run(source: Source, overrides: Overrides = None) -> None:
    """Learn a sequence of tasks; the same command goes on where a killed run stopped."""
    from nlora.cli.run import run_command

    run_command(source, overrides or [], Console())


@app.command()
def demo(overrides: Overrides = None) -> None:
    """N-LoRA beside plain incremental LoRA on the built-in model and tasks, then a table of both."""
    from nlora.cli.run import demo_command

    demo_command(overrides or [], Console())


@app.command()
def check(source: Source, overrides: Overrides = None) -> None:
    """Read and check everything, train nothing, print the plan."""
    from nlora.cli.run import check_command

    check_command(source, overrides or [], Console())


@app.command()
def ls(
    what: Annotated[
        str,
        typer.Argument(metavar="[recipes|methods|data|options]", help="List only these.", show_default=False),
    ] = "",
) -> None:
    """List the recipes, the methods with their options, the data, and all options of a configuration."""
    from nlora.cli.ls import list_command

    list_command(what, Console())


@app.command()
def cp(
    recipe: Annotated[str, typer.Argument(help="A recipe's name (see nlora ls).")],
    file: Annotated[str, typer.Argument(help="The file to write; must not exist yet.")],
) -> None:
    """Copy a recipe into a file of one's own, to change and to run."""
    from nlora.cli.ls import copy_command

    copy_command(recipe, file, Console())


@app.command()
def compare(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...", help="Folders of runs, or folders that hold runs.", show_default=False
        ),
    ],
    format: Annotated[  # noqa: A002 - the option's name
        str | None,
        typer.Option("--format", help="table, markdown, latex or csv.", show_default="by --out, else table"),
    ] = None,
    out: Annotated[
        str | None, typer.Option("--out", metavar="FILE", help="Write the table there.", show_default=False)
    ] = None,
    published: Annotated[
        bool, typer.Option("--published", help="Show every published number of the runs' orders.")
    ] = False,
) -> None:
    """Runs in one table: mean and spread over seeds, with the published numbers of their order."""
    from nlora.report.comparison_formats import compare_command

    compare_command(runs, format, out, published, Console())


@app.command()
def sweep(
    file: Annotated[str, typer.Argument(help="The sweep's YAML file (see docs/sweeps.md).")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="Keys of the sweep's file, as seeds=[1], or of every run, as train.epochs=1.",
            show_default=False,
        ),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option("--jobs", min=1, help="Runs side by side.", show_default="one per GPU, else 1"),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, print each run's command, run nothing.")
    ] = False,
) -> None:
    """Many runs from one file, then one table; the same command repeats only what is missing."""
    from nlora.cli.sweep import sweep_command

    if not sweep_command(file, overrides or [], jobs=jobs, dry_run=dry_run, console=Console()):
        raise typer.Exit(1)


app.command()(analyze)


@app.command()
def report(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN", help="The output_dir of each run, or a folder of runs.")
    ],
    out: Annotated[
        str | None,
        typer.Option(
            "--out",
            metavar="FILE",
            help="The page to write; left out: report.html in the run's folder, or here for several.",
            show_default=False,
        ),
    ] = None,
    figures: Annotated[
        str | None,
        typer.Option(
            "--figures",
            metavar="DIR",
            help="Also write the paper's figures there, as SVG and PDF.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Show a run, or several side by side, as one HTML page that needs no network."""
    from nlora.cli.report import report_command

    report_command(runs, out, figures, Console())


app.add_typer(asking)


def main() -> None:
    """The console script."""
    debug = "--debug" in sys.argv
    if debug:
        # Accepted anywhere on the line, not only before the command.
        sys.argv = [sys.argv[0], *(a for a in sys.argv[1:] if a != "--debug")]
    errors = Console(stderr=True)
    try:
        with ended_like_ctrl_c():
            app()
    except NloraError as error:
        if debug:
            traceback.print_exc()
        count = len(error.problems) if isinstance(error, InputErrors) else 1
        head = "[bold red]error:[/] " if count == 1 else f"[bold red]{count} errors:[/]\n"
        errors.print(head + escape(str(error)), highlight=False, soft_wrap=True)
        sys.exit(2)
    except Stopped as stopped:
        errors.print(escape("; ".join(["stopped", *map(str, stopped.args)])), highlight=False, soft_wrap=True)
        sys.exit(130)
    except Exception as error:  # the last line of defence: a person sees one line, --debug the rest
        if debug:
            traceback.print_exc()
        kind = type(error).__name__
        errors.print(
            f"[bold red]internal error:[/] {escape(kind)}: {escape(str(error))}\n"
            "run again with --debug for the traceback",
            highlight=False,
            soft_wrap=True,
        )
        sys.exit(1)
