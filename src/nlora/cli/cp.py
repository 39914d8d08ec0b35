"""`nlora cp`."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Annotated

import typer

from nlora.cli import completion
from nlora.errors import InputErrors, Problem
from nlora.runs.console import TextConsole


def cp(
    recipe: Annotated[
        str,
        typer.Argument(
            help="The name of a recipe (see nlora ls).",
            autocompletion=completion.recipes,
        ),
    ],
    file: Annotated[str, typer.Argument(help="The file to write; must not exist yet.")],
) -> None:
    """Copy a recipe to a file of your own, to change and to run."""
    from nlora.runs.atomic import refusal

    target = Path(file)
    if target.is_dir():
        target = target / f"{recipe}.yaml"
    elif file.endswith(("/", os.sep)):
        raise InputErrors([Problem(file, "there is no such folder; make it first")])
    text = _renamed(recipe, target.stem)
    try:
        with target.open("x", encoding="utf-8") as handle:  # "x": never overwrite a file
            try:
                handle.write(text)
                handle.flush()
            except OSError:
                target.unlink()
                raise
    except FileExistsError as error:
        what = (
            f"points to {target.readlink()}, which does not exist"
            if target.is_symlink()
            else "exists already"
        )
        raise InputErrors([Problem(str(target), f"{what}; choose another name")]) from error
    except OSError as error:
        raise InputErrors([Problem(str(target), f"cannot be written: {refusal(target, error)}")]) from error
    TextConsole().print(
        f"{target}; run it with: nlora run {shlex.quote(str(target))}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def _renamed(recipe: str, name: str) -> str:
    """The recipe's text, comments included, under another name, so that its runs have a folder of their own."""
    import re

    from nlora.config.load import recipe_text
    from nlora.config.yaml_positions import to_yaml

    line = to_yaml({"name": name})
    text = re.sub(r"^name: .*\n", lambda _: line, recipe_text(recipe), flags=re.MULTILINE)
    return re.sub(r"^output_dir: .*\n", "", text, flags=re.MULTILINE)
