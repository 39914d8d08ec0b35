"""The exceptions that nlora raises for what a user can mend: one tree, each also the built-in it resembles.

    try:
        tasks = load_tasks(config)
    except InputErrors as error:
        for problem in error.problems:
            print(problem)              # runs/a.yaml:7: train.epoch: unknown key; did you mean 'epochs'?

The command line turns any `NloraError` into its message, without a traceback, and exit status 2.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


class NloraError(Exception):
    """Anything wrong that the user of nlora can mend. The message says what, where, and what to do.

    >>> try:
    ...     nlora.open_run("runs/none")
    ... except nlora.NloraError as error:
    ...     print(error)
    runs/none: no such folder; give the output_dir of a run
    """


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake in the input.

    where: the file and line (`tickets.jsonl:12`) or the dotted key (`train.epochs`), or both.
    what: what is wrong and, after a semicolon, what to do about it.

    >>> print(nlora.Problem("train.epoch", "unknown key; did you mean 'epochs'?"))
    train.epoch: unknown key; did you mean 'epochs'?
    """

    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" if self.where else self.what


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


class ModelError(NloraError, ValueError):
    """A model or tokenizer that is not there or that cannot be used for what is asked.

    >>> issubclass(nlora.ModelError, nlora.NloraError) and issubclass(nlora.ModelError, ValueError)
    True
    """


class AdapterError(NloraError, ValueError):
    """A folder that is no adapter, or an adapter that does not fit the model.

    >>> nlora.interference(["tickets", "urgency"])
    Traceback (most recent call last):
    nlora.errors.AdapterError: tickets: not an adapter, the folder has no adapter_config.json
    """


class RunError(NloraError, RuntimeError):
    """A folder that is no run, is locked, belongs to another configuration, or cannot be written.

    >>> nlora.open_run("tickets")
    Traceback (most recent call last):
    nlora.errors.RunError: tickets: no run.yaml in it; give the output_dir of a run
    """


class FetchError(NloraError, OSError):
    """The built-in default could not be fetched, or what came is not what was expected.

    >>> issubclass(nlora.FetchError, nlora.NloraError) and issubclass(nlora.FetchError, OSError)
    True
    """


class MissingExtraError(NloraError, ImportError):
    """An optional package is needed; the message names the command that installs it.

    >>> issubclass(nlora.MissingExtraError, nlora.NloraError) and issubclass(nlora.MissingExtraError, ImportError)
    True
    """


def missing(package: str) -> str:
    """`ray is not installed; pip install ray`: the package itself, as nlora's extras work from its checkout only."""
    return f"{package} is not installed; pip install {package}"
