"""`nlora doctor`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from nlora import __version__
from nlora.cli.doctor.section import Section
from nlora.runs.console import TextConsole


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON, for a bug report.")] = False,
) -> None:
    """Show versions, devices, memory, caches and extras, and what is wrong; exit status 1 if anything is."""
    from nlora.cli.doctor import machine, software, storage

    # The packages first: what follows uses torch if it could be imported.
    parts = (
        software.packages,
        machine.devices,
        machine.memory,
        storage.disks,
        storage.caches,
        software.extras,
    )
    sections = [part() for part in parts]
    problems = [problem for section in sections for problem in section.problems]
    if as_json:
        typer.echo(json.dumps(_values(sections), indent=2))
    else:
        _show(sections)
    if problems:
        raise typer.Exit(1)


def _values(sections: Sequence[Section]) -> dict[str, object]:
    facts = {
        section.title: {name.strip(): value for name, value in section.facts.items()} for section in sections
    }
    problems = [
        {"where": problem.where, "what": problem.what} for section in sections for problem in section.problems
    ]
    return {"nlora": __version__, **facts, "problems": problems}


def _show(sections: Sequence[Section]) -> None:
    console = TextConsole()
    console.print(f"[bold]nlora {__version__}[/]", highlight=False)
    for section in sections:
        console.print(f"\n[bold]{section.title}[/]")
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 2))
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in section.facts.items():
            table.add_row(escape(name), escape(value))
        console.print(table)
    lines = [str(problem) for section in sections for problem in section.problems]
    heading = f"[bold red]{len(lines)} {'problem' if len(lines) == 1 else 'problems'}:[/]"
    console.print(f"\n{heading}" if lines else "\n[green]Nothing is wrong.[/]", highlight=False)
    for line in lines:
        console.print(f"  {escape(line)}", highlight=False, soft_wrap=True)
