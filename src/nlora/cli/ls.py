"""What needs no model: `nlora ls` and `nlora cp`. Imports neither torch nor transformers, so both answer at once."""

from __future__ import annotations

import re
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from nlora.config.load import recipe_description, recipe_names, recipe_text
from nlora.config.yaml_positions import to_yaml
from nlora.errors import InputErrors, Problem
from nlora.methods.registry import describe, method_names
from nlora.runs.atomic import refusal


def list_command(what: str, console: Console) -> None:
    """`nlora ls [recipes|methods|data|options]`."""
    sections = {"recipes": _recipes, "methods": _methods, "data": _data, "options": _options}
    if what and what not in sections:
        raise InputErrors(
            [Problem("nlora ls", f"there is no list of '{what}'; choose {', '.join(sections)}")]
        )
    for name, section in sections.items():
        # All the options of a configuration are many: only when asked for.
        if name == what or (not what and name != "options"):
            console.print(f"[bold]{name}[/]")
            console.print(section())
            console.print()


def copy_command(recipe: str, file: str, console: Console) -> None:
    """`nlora cp RECIPE FILE`: the recipe's text, comments included, in a new file.

    It is called after the file, so that its runs have a folder of their own.
    """
    target = Path(file)
    if target.is_dir():
        target = target / f"{recipe}.yaml"
    name = to_yaml({"name": target.stem})
    text = re.sub(r"^name: .*\n", lambda _: name, recipe_text(recipe), flags=re.MULTILINE)
    text = re.sub(r"^output_dir: .*\n", "", text, flags=re.MULTILINE)
    try:
        # "x": never over a file that is there.
        with target.open("x", encoding="utf-8") as handle:
            handle.write(text)
    except FileExistsError as error:
        there = (
            f"points to {target.readlink()}, which is not there" if target.is_symlink() else "exists already"
        )
        raise InputErrors([Problem(str(target), f"{there}; choose another name")]) from error
    except OSError as error:
        raise InputErrors([Problem(str(target), f"cannot be written: {refusal(target, error)}")]) from error
    console.print(f"{target}; run it with: nlora run {target}", markup=False, highlight=False, soft_wrap=True)


def _table() -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    return table


def _recipes() -> Table:
    table = _table()
    for name in recipe_names():
        table.add_row(name, escape(recipe_description(name)))
    return table


def _methods() -> Table:
    table = _table()
    for name in method_names():
        try:
            info = describe(name)
        except InputErrors as error:  # a broken package should not hide the other methods
            table.add_row(name, escape(error.problems[0].what))
            continue
        table.add_row(name, escape(info.summary))
        for option in info.options:
            table.add_row(
                "", escape(f"{option.name}: {option.type} = {option.default}  {option.help}"), style="dim"
            )
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
    table.add_row("files", f"of your own, {formats}; tasks: [{{name, train, test, instruction, labels}}]")
    return table


def _options() -> Table:
    from nlora.cli.config_docs import configuration_keys

    table = _table()
    for key in configuration_keys():
        table.add_row(key.path, escape(f"{key.default}  {key.help}"))
    return table
