"""Resume points: the saved states of a half-trained task, from which a run that was stopped or killed resumes.

    resume/<k>-<task>/step-<n>/     point.json, and what the trainer wrote

A point is written whole or not at all. The last two of a stage are kept, and none once the stage is committed.
point.json has the SHA-256 digests of the files and of itself, and what the point was made with. A damaged point is
passed over for the one before. A point that was made with something else (other options, other examples, other
versions) is not used: the task starts anew.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from nlora.config.train_options import TrainOptions
from nlora.errors import RunError
from nlora.models.processes import from_main, is_main, largest
from nlora.runs.atomic import disk_errors, publish_folder, remove, sweep, write_json
from nlora.runs.layout import RESUME, stage_name, unfinished
from nlora.runs.signals import StopRequest

POINT_FILE = "point.json"
_STEP = "step-"
_KEPT = 2
_LARGEST_SHARE = 0.01
"""Of the time, for saving by the clock."""

log = logging.getLogger("nlora")


@dataclass(frozen=True, slots=True)
class Position:
    """How far a task is trained, in optimizer steps."""

    step: int
    steps: int


class StageResumePoints:
    """The resume points of one stage; implements `nlora.training.resumable_trainer.ResumePoints`.

    made_with: what the rest of the training depends on, by its name in words, as JSON values.
    request: whether the process is asked to stop. say: takes a line for the user.
    """

    def __init__(
        self,
        folder: Path,
        steps: int,
        options: TrainOptions,
        made_with: Mapping[str, Any],
        request: StopRequest,
        say: Callable[[str], None],
    ) -> None:
        self._folder, self._steps, self._options = folder, steps, options
        self._made_with, self._request, self._say = dict(made_with), request, say
        self._saved_at, self._cost = time.monotonic(), 0.0
        self._is_stopping = False
        self._latest = from_main(self._usable)

    @property
    def latest(self) -> Path | None:
        """The point to resume from; None if there is none."""
        return self._latest

    @property
    def position(self) -> Position | None:
        """Where the training resumes; None at its start."""
        return None if self._latest is None else _position(self._latest)

    @property
    def is_stopping(self) -> bool:
        """Whether the step for which `is_due` was asked is the last one, because a process was asked to stop."""
        return self._is_stopping

    def is_due(self, step: int) -> bool:
        """Whether to save after this optimizer step. This alone decides it: by the main process's clock, or because any
        process was asked to stop. All processes call it."""
        due = is_main() and self._is_due(step)
        asked, due = map(bool, largest(self._request.is_made, due))
        self._is_stopping = asked
        return asked or due

    def _is_due(self, step: int) -> bool:
        if isinstance(self._options.save_every, int):
            return step % self._options.save_every == 0
        wait = max(self._options.save_seconds or 0.0, self._cost / _LARGEST_SHARE)
        return time.monotonic() - self._saved_at >= wait

    def write(self, step: int, fill: Callable[[Path], None]) -> None:
        """Keep what `fill` writes into a folder as the point of a step.

        A disk that is full does not end the training: it is reported, and the earlier points stay.
        """
        begin = time.monotonic()
        final = self._folder / f"{_STEP}{step}"
        temporary = unfinished(final)
        try:
            with disk_errors(temporary):
                remove(temporary)
                temporary.mkdir(parents=True)
                fill(temporary)
                files = {file.name: _digest(file) for file in sorted(temporary.iterdir())}
                remove(final)
            values = {"step": step, "steps": self._steps, "made_with": self._made_with, "files": files}
            write_json(temporary / POINT_FILE, {**values, "sha256": _digest_of(values)})
            publish_folder(temporary, final)
            for older in _points(self._folder)[_KEPT:]:
                remove(older)
        except (RunError, SafetensorError) as error:
            self._say(f"the half-trained task could not be saved, and training continues: {error}")
            with suppress(OSError):
                remove(temporary)
        self._saved_at = time.monotonic()
        self._cost = self._saved_at - begin

    def clear(self) -> None:
        """Remove all points: the training that they belong to is over."""
        from_main(self._clear)

    def _clear(self) -> None:
        for point in _points(self._folder):
            remove(point)

    def _usable(self) -> Path | None:
        """The newest point that is whole and was made with the same things."""
        for point in _points(self._folder):
            if (why := _damage(point)) is not None:
                log.warning("%s: not used, %s", point, why)
                remove(point)
                continue
            before = _read(point)["made_with"]
            names = dict.fromkeys([*before, *self._made_with])
            if others := [name for name in names if before.get(name) != self._made_with.get(name)]:
                self._say(
                    f"{point}: was made with other {' and '.join(others)}, so the task is trained from its start"
                )
                remove(self._folder)
                return None
            return point
        return None


def stage_folder(run: Path, stage: int, task: str) -> Path:
    """The folder of a stage's resume points."""
    return run / RESUME / stage_name(stage, task)


def latest_position(folder: Path) -> Position | None:
    """How far a stage is trained according to the newest of its points; None if there is none."""
    return next((found for point in _points(folder) if (found := _position(point))), None)


def sweep_points(run: Path, keep: Collection[Path] = ()) -> None:
    """Remove what is left of the resume points of a run, except those in the folders `keep`."""
    resume = run / RESUME
    if not resume.is_dir():
        return
    with disk_errors(resume):
        for folder in resume.iterdir():
            if folder not in keep:
                remove(folder)
            else:
                sweep(folder)
        if not any(resume.iterdir()):
            resume.rmdir()


def _points(folder: Path) -> list[Path]:
    """The points of a stage, newest first."""
    found = [path for path in folder.glob(f"{_STEP}*") if path.name.removeprefix(_STEP).isdecimal()]
    return sorted(found, key=lambda path: int(path.name.removeprefix(_STEP)), reverse=True)


def _read(point: Path) -> dict[str, Any]:
    """The contents of point.json; empty if it is missing or broken."""
    try:
        values = json.loads((point / POINT_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    whole = isinstance(values, dict) and values.pop("sha256", None) == _digest_of(values)
    return values if whole else {}


def _position(point: Path) -> Position | None:
    values = _read(point)
    return Position(values["step"], values["steps"]) if values else None


def _damage(point: Path) -> str | None:
    """Why a point cannot be used; None if it is whole."""
    values = _read(point)
    if not values:
        return f"its {POINT_FILE} is missing or broken"
    for name, digest in values["files"].items():
        try:
            if _digest(point / name) != digest:
                return f"{name} is damaged"
        except OSError as error:
            return f"{name}: {error.strerror}"
    return None


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _digest_of(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
