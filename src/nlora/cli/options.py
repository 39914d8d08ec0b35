"""Arguments and options that several commands share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Annotated

import typer

from nlora.cli import completion
from nlora.config.paths import path_problem
from nlora.errors import InputErrors, Problem

if TYPE_CHECKING:
    from nlora.config.load import LoadedConfig

Source = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE-OR-FILE",
        help="The name of a recipe (see nlora ls) or a YAML file.",
        autocompletion=completion.sources,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...",
        help="Overrides by dotted key, such as train.learning_rate=5e-4 seed=1.",
        autocompletion=completion.overrides,
        show_default=False,
    ),
]
RunFolder = Annotated[
    str,
    typer.Argument(
        metavar="RUN", help="The folder of a run.", show_default=False, autocompletion=completion.runs
    ),
]
Stage = Annotated[
    int | None,
    typer.Option(
        "--stage",
        metavar="K",
        help="The model after this stage, from 1; 0: before any training.",
        show_default="the last committed one",
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="A key of evaluate, such as decode=generate or max_samples=100.",
        show_default=False,
    ),
]


def evaluate_overrides(settings: Sequence[str] | None) -> list[str]:
    """`--set` options as overrides of the configuration."""
    return [f"evaluate.{setting.removeprefix('evaluate.')}" for setting in settings or ()]


def load_first(source: str, overrides: Sequence[str]) -> LoadedConfig:
    """`load_config`, whose mistakes say that data and model have not been checked yet."""
    from nlora.config.load import load_config

    try:
        return load_config(source, overrides)
    except InputErrors as error:
        if any(problem.key or "=" in problem.source for problem in error.problems):
            error.add_note("data and model are checked once the configuration is right")
        raise


def writable(path: str, option: str) -> Path:
    """The path of a file that can be written after the work is done. Raises InputErrors naming the option."""
    target = Path(path)
    if problem := path_problem(path):
        raise InputErrors([Problem(option, problem)])
    if target.is_dir():
        raise InputErrors([Problem(option, f"{path} is a folder; give the name of a file")])
    if not target.absolute().parent.is_dir():
        what = f"{path}: there is no folder {target.absolute().parent}; create it first"
        raise InputErrors([Problem(option, what)])
    try:
        with TemporaryFile(dir=target.absolute().parent):
            pass
    except OSError as error:
        what = f"{path} cannot be written: {error.strerror or error}; choose another place"
        raise InputErrors([Problem(option, what)]) from error
    return target
