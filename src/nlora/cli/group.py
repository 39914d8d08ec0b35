"""Typer's group of commands, with a word for two things that Typer has none for: being stopped, and keys as options.

app = typer.Typer(cls=Commands)
"""

from __future__ import annotations

import sys
from typing import Any

from typer.core import TyperGroup

from nlora.errors import InputErrors, Problem


class Stopped(BaseException):
    """From the keyboard, or by SIGTERM: in place of KeyboardInterrupt, of which Typer makes a silent exit."""


class Commands(TyperGroup):
    """The group of nlora's commands."""

    def invoke(self, ctx: Any) -> Any:
        """Raises Stopped, with what the command had to say; InputErrors for a key that came as an option."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise Stopped(*error.args) from error
        except Exception as error:
            if problem := _key_as_option(error):
                raise InputErrors([problem]) from error
            raise


def _key_as_option(error: Any) -> Problem | None:
    """`--train.epochs 2` and `--seed=3`, where a command takes overrides and has no option of this name or like it."""
    if type(error).__name__ != "NoSuchOption" or error.possibilities or error.ctx is None:
        return None
    if "overrides" not in {parameter.name for parameter in error.ctx.command.params}:
        return None
    from nlora.config.overrides import key_of_option

    given = next((i for i, text in enumerate(sys.argv) if text.startswith(error.option_name)), len(sys.argv))
    written, after = (*sys.argv[given : given + 2], "", "")[:2]
    option, equals, value = written.partition("=")
    key = key_of_option(option)
    if key is None:
        return None
    if not equals:
        value = "VALUE" if after.startswith("-") else after or "VALUE"
    return Problem(option, f"no such option; keys are written without dashes: {key}={value}")
