"""Where each value of a configuration was written, so that a mistake can be reported with its line.

>>> places = SourceMap("my.yaml", {("after", 0): 3, ("tasks", 0): 5}, adapters=1)
>>> print(places.problem(("tasks", 1, "train"), "no such file"))
my.yaml:5: tasks.0.train: no such file
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from nlora.errors import Key, Problem


class Place(NamedTuple):
    """Where a value was written: a line of a file, or an override. key: the value's name there."""

    source: str
    line: int | None = None
    key: Key = ()

    def problem(self, what: str) -> Problem:
        """A mistake in this place."""
        return Problem(self.source, what, self.line, self.key)


@dataclass(frozen=True, slots=True)
class SourceMap:
    """Where each value of a configuration was written.

    source: the file or recipe, as the user wrote it. lines: by key. written: values that are not text, as they were
    written. overrides: by key, where the override is. prefix: what comes before the keys in the file.
    adapters: how many tasks of the configuration come first because `after` names their adapters.
    """

    source: str
    lines: dict[Key, int] = field(default_factory=dict)
    written: dict[Key, str] = field(default_factory=dict)
    overrides: dict[Key, Place] = field(default_factory=dict)
    prefix: Key = ()
    adapters: int = 0

    def own(self, path: Key) -> Key:
        """The key of the configuration as the user wrote it: `after.0` for the first task if it comes from there."""
        if path[:1] != ("tasks",) or not self.adapters or not isinstance(i := (*path, None)[1], int):
            return path
        return ("tasks", i - self.adapters, *path[2:]) if i >= self.adapters else ("after", i)

    def written_at(self, path: Key) -> str | None:
        """The value of a key as it was written, if it is not text."""
        return self.written.get(self.own(path))

    def where(self, path: Key) -> Place:
        """The file and the line, or the override, that sets a key; of a missing key, where its parent is set.

        A mapping that exists only because of an override into it is where that override is.
        """
        path = self.own(path)
        if path and path not in self.lines:
            for key, place in self.overrides.items():
                if key[: len(path)] == path:
                    return place
        for length in range(len(path), -1, -1):
            start = path[:length]
            if start in self.overrides:
                place = self.overrides[start]
                below = path[length:]
                return place._replace(key=place.key + below if place.key or not below else path)
            if start in self.lines:
                return Place(self.source, self.lines[start], self.prefix + path)
        return Place(self.source, None, self.prefix + path)

    def problem(self, path: Key, what: str) -> Problem:
        """A mistake at a key."""
        return self.where(path).problem(what)

    def located(self, problem: Problem) -> Problem:
        """A problem that has a key only, with the file and line; any other as it is."""
        return self.problem(problem.key, problem.what) if problem.key and not problem.source else problem

    def overridden(self, path: Key, place: Place, written: Mapping[Key, str]) -> SourceMap:
        """The same places after an override replaced everything at and below `path`."""

        def outside(key: Key) -> bool:
            return key[: len(path)] != path

        return replace(
            self,
            lines={key: line for key, line in self.lines.items() if outside(key)},
            written={key: value for key, value in self.written.items() if outside(key)}
            | {path + key: value for key, value in written.items()},
            overrides={key: value for key, value in self.overrides.items() if outside(key)} | {path: place},
        )

    def inside(self, path: Key, prefix: Key = ()) -> SourceMap:
        """The places below `path`, as if that were the whole file. prefix: what to show before their keys."""
        size = len(path)
        lines = {key[size:]: line for key, line in self.lines.items() if key[:size] == path}
        written = {key[size:]: value for key, value in self.written.items() if key[:size] == path}
        return SourceMap(self.source, lines, written, prefix=prefix)
