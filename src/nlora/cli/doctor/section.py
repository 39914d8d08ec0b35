"""A section of the doctor's report: facts, and what is wrong."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from nlora.errors import Problem


@dataclass(slots=True)
class Section:
    """facts: name -> value, in order. problems: each with its remedy after a semicolon."""

    title: str
    facts: dict[str, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def wrong(self, where: str, what: str) -> None:
        """Adds a problem."""
        self.problems.append(Problem(where, what))


def short(path: Path) -> str:
    """The path with `~` for the home folder, so that a report that is shared does not name its user."""
    try:
        return f"~/{path.relative_to(Path.home()).as_posix()}"
    except (ValueError, RuntimeError):  # elsewhere, or no home folder
        return str(path)
