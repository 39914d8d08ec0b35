"""A run's folder for all of its processes: the main one writes, and the others follow it."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from nlora.config.schema import Config
from nlora.models.processes import barrier, from_main
from nlora.runs.folder import RunFolder
from nlora.runs.layout import LOG_FILE, unfinished
from nlora.runs.lock import free_lock
from nlora.runs.log_file import RunLog
from nlora.runs.task_records import TaskRecord


def open_together(
    config: Config,
    versions: Mapping[str, str],
    base_folder: Path | None = None,
    *,
    damaged: Collection[int] = (),
) -> RunFolder:
    """`RunFolder.open` in the main process, and a Follower of it in the others. Raises as it does, in all of them."""
    opened: list[RunFolder] = []

    def found() -> tuple[list[int], dict[str, float] | None]:
        opened.append(run := RunFolder.open(config, versions, base_folder, damaged=damaged))
        return run.committed_stages(), run.zero_shot()

    committed, zero_shot = from_main(found)
    return opened[0] if opened else Follower(config, versions, committed, zero_shot)


class Follower(RunFolder):
    """What another process than the main one has of a run's folder: it reads it, and writes nothing but its errors.

    committed, zero_shot: what the main process found when it opened the folder. What has been committed since is known
    from the stages that both went through, because on a shared file system, machines see a change at different times.
    """

    def __init__(
        self,
        config: Config,
        versions: Mapping[str, str],
        committed: Collection[int],
        zero_shot: dict[str, float] | None,
    ) -> None:
        folder = Path(config.output_dir)
        super().__init__(folder, config, versions, free_lock(folder))
        self._committed, self._zero_shot = set(committed), zero_shot

    def is_committed(self, stage: int) -> bool:
        return stage in self._committed

    def zero_shot(self) -> dict[str, float] | None:
        return self._zero_shot

    def write_zero_shot(self, scores: Mapping[str, float], records: Mapping[str, TaskRecord]) -> None:
        super().write_zero_shot(scores, records)
        self._zero_shot = dict(scores)

    @contextmanager
    def stage(self, stage: int) -> Iterator[Path]:
        """The main process's temporary folder, for reading, from when it is there until it is committed."""
        barrier()
        yield unfinished(self.stage_folder(stage))
        barrier()
        self._committed.add(stage)

    def attach_log(self) -> None:
        """Append errors to the run's log until the folder is closed."""
        if self._log is None:
            self._log = RunLog(self.folder / LOG_FILE, logging.ERROR)
