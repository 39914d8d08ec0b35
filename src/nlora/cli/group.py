"""Typer's group of commands, with a message for two cases: a command that is stopped, and a key given as an option."""

from __future__ import annotations

import re
import sys
from typing import Any

from typer.core import TyperGroup

from nlora.config.paths import at_home
from nlora.errors import InputErrors, Problem

STOPPED = 130
"""The exit status of a command that is stopped from the keyboard or by SIGTERM."""


_PATH = re.compile(r"^(--[\w-]+=|)(~/.*|~)$", re.DOTALL)


class Stopped(BaseException):
    """Raised instead of KeyboardInterrupt, which Typer turns into a silent exit."""


class Commands(TyperGroup):
    """The group of nlora's commands."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Also read `--out=~/x` as `--out ~/x`, where the shell has put the home folder already."""
        return super().parse_args(ctx, [_PATH.sub(lambda m: m[1] + at_home(m[2]), text) for text in args])

    def invoke(self, ctx: Any) -> Any:
        """Raises Stopped with the message of the command; InputErrors for a key given as an option."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise Stopped(*error.args) from error
        except Exception as error:
            if problem := _key_as_option(error):
                raise InputErrors([problem]) from error
            raise


def _key_as_option(error: Any) -> Problem | None:
    """`--train.epochs 2` or `--seed=3`, if the command takes overrides and has no such option."""
    if type(error).__name__ != "NoSuchOption" or error.ctx is None:
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
