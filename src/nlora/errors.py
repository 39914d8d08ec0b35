"""The exceptions that nlora raises for what a user can fix: one tree, and each is also the built-in it resembles.

The command line turns any `NloraError` into its message, without a traceback, and exits with status 2.

>>> from nlora.config.load import load_config
>>> try:
...     load_config({"tasks": ["agnews"], "seeds": 1, "train": {"epoch": 2}})
... except InputErrors as error:
...     for problem in error.problems:
...         print(problem)
config: train.epoch: unknown key; did you mean 'epochs'?
config: seeds: unknown key; did you mean 'seed'?
"""

from __future__ import annotations

import errno
import os
import re
import signal
import unicodedata
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from numbers import Real
from pathlib import Path
from typing import Any

Key = tuple[str | int, ...]
"""A dotted key in parts: `tasks.0.name` is ("tasks", 0, "name")."""


class NloraError(Exception):
    """Anything wrong that the user of nlora can fix. The message says what, where, and what to do.

    >>> try:
    ...     nlora.open_run("runs/none")
    ... except nlora.NloraError as error:
    ...     print(error)
    runs/none: no such folder; give the output_dir of a run
    """


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake in the input.

    source: the file, the override or the option it is in; empty where only the key is known.
    what: what is wrong and, after a semicolon, what to do about it.
    line: the line of the file, from 1. key: the key of the configuration, as the source names it.

    >>> print(nlora.Problem("my.yaml", "unknown key; did you mean 'epochs'?", 7, ("train", "epoch")))
    my.yaml:7: train.epoch: unknown key; did you mean 'epochs'?
    """

    source: str
    what: str
    line: int | None = None
    key: Key = ()

    @classmethod
    def at(cls, key: Key, what: str) -> Problem:
        """A mistake at a key of the configuration; whoever has the configuration adds the file and the line."""
        return cls("", what, None, key)

    @property
    def where(self) -> str:
        """`my.yaml:7: train.epoch`, as far as it is known."""
        source = self.source if self.line is None else f"{self.source}:{self.line}"
        return ": ".join(part for part in (source, dotted(self.key)) if part)

    def __str__(self) -> str:
        """One line that any terminal takes: a line end in a file's name or in a quoted value is shown as \\n."""
        return printable(f"{self.where}: {self.what}" if self.where else self.what)


class InputErrors(NloraError, ValueError):
    """All the mistakes found in the input, at once.

    >>> try:
    ...     nlora.load_config("support.yaml", {"seeds": 1, "train.epoch": 2})
    ... except nlora.InputErrors as error:
    ...     len(error.problems)
    2
    """

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))

    def __reduce__(self) -> tuple[type[InputErrors], tuple[tuple[Problem, ...]]]:
        return InputErrors, (self.problems,)  # by default, it would be made again from the text


class ModelError(NloraError, ValueError):
    """A model or tokenizer that does not exist or does not suit its use.

    >>> issubclass(nlora.ModelError, nlora.NloraError) and issubclass(nlora.ModelError, ValueError)
    True
    """


class AdapterError(NloraError, ValueError):
    """A folder without an adapter, or an adapter that does not fit the model.

    >>> nlora.interference(["tickets", "urgency"])
    Traceback (most recent call last):
    nlora.errors.AdapterError: tickets: not an adapter, the folder has no adapter_config.json
    """


class RunError(NloraError, RuntimeError):
    """A folder that holds no run, is locked, belongs to another configuration, or is not writable.

    >>> nlora.open_run("tickets")
    Traceback (most recent call last):
    nlora.errors.RunError: tickets: no run.yaml in it; give the output_dir of a run
    """


class FetchError(NloraError, OSError):
    """A download of the built-in model or texts failed, or brought something unexpected.

    >>> issubclass(nlora.FetchError, nlora.NloraError) and issubclass(nlora.FetchError, OSError)
    True
    """


class MissingExtraError(NloraError, ImportError):
    """An optional package is needed; the message has the command that installs it.

    >>> issubclass(nlora.MissingExtraError, nlora.NloraError) and issubclass(nlora.MissingExtraError, ImportError)
    True
    """


def first_line(error: BaseException) -> str:
    """The first line of an error's message, without a full stop; the name of its class if it has no message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def with_class(error: BaseException) -> str:
    """`ImportError: no module named x`: the class of an error and the first line of its message."""
    name, line = type(error).__name__, first_line(error)
    return name if line == name else f"{name}: {line}"


def killed_by(number: int) -> str:
    """`killed by SIGKILL (out of memory?)`, from the number of a signal."""
    name = f"signal {number}"
    with suppress(ValueError):
        name = signal.Signals(number).name
    return f"killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")


def missing(package: str) -> str:
    """`ray is not installed; pip install ray`: the package itself, as nlora's extras work from its checkout only."""
    return f"{package} is not installed; pip install {package}"


def to_repair(again: str = "trained", *, moved: Path | None = None) -> str:
    """What to do about a damaged file of a stage. again: trained or scored.

    moved: the stage's folder where no checksum tells a repair what is damaged.
    """
    first = "" if moved is None else f"move {moved} away and "
    return f"restore it, or {first}give the run's command with --repair, which has the stage {again} again"


def unusable(path: Path, error: Exception, again: str = "trained", *, moved: Path | None = None) -> RunError:
    """The error for a file of a stage that could not be read; see `to_repair`.

    What the system refuses to read may be whole, so that nothing should be done to it.
    """
    number = system_error(error)
    if number not in (None, errno.ENOENT):
        return RunError(f"{path}: cannot be read: {os.strerror(number)}")
    is_missing = isinstance(error, FileNotFoundError) or number == errno.ENOENT
    why = "" if isinstance(error, ValueError) else f" ({error})"
    return RunError(
        f"{path}: {'is missing' if is_missing else f'is broken{why}'}; {to_repair(again, moved=moved)}"
    )


def system_error(error: Exception) -> int | None:
    """The number of an error of the operating system; None for other errors.

    Libraries in Rust (safetensors, tokenizers) raise classes of their own, whose message ends with the number.
    """
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    found = re.search(r"\(os error (\d+)\)", str(error))
    return None if found is None else int(found[1])


def printable(text: str) -> str:
    """The text with line ends, control characters and halves of characters as escapes.

    >>> print(printable("label 'a\\nb'"))
    label 'a\\nb'
    """
    if text.isprintable():
        return text
    return "".join(c.encode("unicode_escape").decode() if _is_unsafe(c) else c for c in text)


def _is_unsafe(character: str) -> bool:
    """Also marks that turn the direction of what follows, by which a text can look like another one."""
    turns = "\u202a" <= character <= "\u202e" or "\u2066" <= character <= "\u2069"
    return turns or (character != "\t" and unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp"))


def is_number(value: object) -> bool:
    """Whether an argument from Python is a number; True and False are none."""
    return isinstance(value, Real) and not isinstance(value, bool)


def shown_number(value: Any) -> str:
    """What was given for a number: as it is typed in the shell, or in quotes if it is a text."""
    return f"{value:g}" if is_number(value) else repr(value)


def dotted(key: Key) -> str:
    """("tasks", 0, "name") as `tasks.0.name`."""
    return ".".join(map(str, key))


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'epochs'?`, or nothing if no known word is close."""
    by_lower = {name.lower(): name for name in known}
    close = get_close_matches(str(word).lower(), by_lower, n=1)
    return f"; did you mean '{by_lower[close[0]]}'?" if close else ""
