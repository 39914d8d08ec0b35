"""`nlora ls`. Imports neither torch nor transformers, so that it answers at once."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from nlora.cli import completion
from nlora.errors import InputErrors, Problem
from nlora.runs.console import TextConsole


def ls(
    what: Annotated[
        str,
        typer.Argument(
            metavar="[recipes|methods|data|options]",
            help="List only these.",
            show_default=False,
            autocompletion=completion.lists,
        ),
    ] = "",
) -> None:
    """List the recipes, the methods with their options, the data, and all options of a configuration."""
    sections = dict(zip(completion.LISTS, (_recipes, _methods, _data, _options), strict=True))
    if what and what not in sections:
        raise InputErrors(
            [Problem("nlora ls", f"there is no list of '{what}'; choose {', '.join(sections)}")]
        )
    console = TextConsole()
    for name, section in sections.items():
        # The options of a configuration make a long list: shown only on request.
        if name == what or (not what and name != "options"):
            console.print(f"[bold]{name}[/]")
            console.print(section())
            console.print()


def _table() -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    return table


def _recipes() -> Table:
    from nlora.config.load import recipe_description, recipe_names

    table = _table()
    for name in recipe_names():
        table.add_row(name, escape(recipe_description(name)))
    return table


def _methods() -> Table:
    from nlora.methods.registry import describe, method_names

    table = _table()
    for name in method_names():
        try:
            info = describe(name)
        except InputErrors as error:  # a broken package should not hide the other methods
            table.add_row(name, escape(error.problems[0].what))
            continue
        table.add_row(name, escape(info.summary))
        for option in info.options:
            text = f"{option.name}: {option.type} = {option.default}  {option.help}"
            table.add_row("", escape(text), style="dim")
    return table


def _data() -> Table:
    from nlora.data import builtin

    table = _table()
    for name, task in builtin.TASKS.items():
        words = ", ".join(task.words.values())
        train, test = (count * len(task.words) for count in (task.train_per_label, task.test_per_label))
        table.add_row(name, escape(f"{words} ({train} train, {test} test examples); data: builtin"))
    table.add_row(
        "a folder", "in the released layout <type>/<dataset>/{train,dev,test,labels}.json; data: FOLDER"
    )
    formats = "JSONL, JSON, CSV, TSV or Parquet, or hub:<data set>"
    table.add_row("files", f"of your own, {formats}; nlora cp own mine.yaml writes an example")
    return table


def _options() -> Table:
    from nlora.cli.config_docs import configuration_keys

    table = _table()
    for key in configuration_keys():
        table.add_row(key.path, escape(f"{key.default}  {key.help}"))
    return table
