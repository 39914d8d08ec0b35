"""Runs that differ only in their seed, which tables and pages show as one."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from nlora.report.comparison_notes import Setting, same_setting, setting_of
from nlora.runs.summary import Summary


def grouped(runs: Iterable[tuple[Path, Summary]]) -> list[list[tuple[Path, Summary]]]:
    """The runs that differ only in their seed, together, in the order in which they first appear.

    An unfinished run is alone, and so is a second run of the same seed.
    """
    groups: list[_Group] = []
    complete: dict[tuple[object, ...], list[_Group]] = {}
    for folder, summary in runs:
        alike = complete.setdefault(identity_of(summary), []) if summary.status == "complete" else []
        group = next((group for group in alike if group.takes(summary)), None)
        if group is None:
            group = _Group()
            groups.append(group)
            alike.append(group)
        group.add(folder, summary)
    return [group.runs for group in groups]


class _Group:
    """The runs of one row so far."""

    def __init__(self) -> None:
        self.runs: list[tuple[Path, Summary]] = []
        self._seeds: set[int] = set()
        self._settings: dict[Setting, Summary] = {}  # mostly one, however many seeds

    def takes(self, summary: Summary) -> bool:
        """Whether a run of the same identity belongs here: it has another seed, and the same setting as all others."""
        return summary.seed not in self._seeds and all(
            same_setting(other, summary) for other in self._settings.values()
        )

    def add(self, folder: Path, summary: Summary) -> None:
        self.runs.append((folder, summary))
        self._seeds.add(summary.seed)
        self._settings.setdefault(setting_of(summary), summary)


def identity_of(summary: Summary) -> tuple[object, ...]:
    """What runs of one group have in common beside their setting."""
    # Without the key: from a version that had only the repaired protocol.
    released = summary.protocol == "released"
    return (summary.name, summary.method_label, summary.replay, summary.model, summary.tasks, released)
