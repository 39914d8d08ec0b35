"""A run's folder: its layout, who may write to it, which stages are done, and how a stage is committed.

The layout is that of the released code:

    run.yaml                        the resolved configuration, versions, and when it was created
    logs/train_and_infer.log
    outputs/<k>-<task>/             one folder per committed stage
        adapter/  all_results.json  train_results.json  predict_results.json  predict_eval_predictions.jsonl
        stage.json                  the stage's row of R and its timings
    zero_shot.json                  scores before any training, if wanted
    summary.json

A stage is written to a temporary folder, which is renamed once everything in it is on the disk. Only one process may
write to a run: it holds a lock of the operating system, which is released when the process ends.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from filelock import FileLock

from nlora.config.schema import Config
from nlora.errors import RunError
from nlora.models.processes import barrier, by_main
from nlora.runs.atomic import DISK_FULL, disk_errors, publish_folder, remove, sweep, write_json
from nlora.runs.layout import (
    ADAPTER,
    LOG_FILE,
    MEMORY_FILE,
    OUTPUTS,
    RUN_FILE,
    STAGE_FILE,
    stage_name,
    unfinished,
)
from nlora.runs.lock import free_lock, held_lock
from nlora.runs.log_file import RunLog
from nlora.runs.run_yaml import refuse_other_configuration, write_or_compare
from nlora.runs.stage_files import TRAINED_FILE, read_zero_shot, trained, trained_task, write_zero_shot
from nlora.runs.summary import Collision, StageRecord, Summary, read_summary, summary_of, write_summary
from nlora.runs.task_records import TaskRecord


def write_stage_record(folder: Path, record: StageRecord) -> None:
    """Write a stage's record to its folder, before the stage is committed."""
    write_json(folder / STAGE_FILE, record.model_dump(mode="json"))


class RunFolder:
    """The folder of one run, locked while open. Open it with `RunFolder.open`; it is a context manager."""

    def __init__(self, folder: Path, config: Config, versions: Mapping[str, str], lock: FileLock) -> None:
        self.folder = folder
        self.config = config
        self.versions = dict(versions)
        self._lock = lock
        self._log: RunLog | None = None

    @classmethod
    def open(cls, config: Config, versions: Mapping[str, str], base_folder: Path | None = None) -> RunFolder:
        """Create or resume the run of `config.output_dir`.

        versions: of the packages that affect the outcome, for run.yaml and the summary. If they differ from the
            folder's, they are recorded too and logged; they do not stop a run.
        base_folder: where relative paths in the configuration are looked up after the current folder; recorded.

        Raises RunError if another process uses the folder, if the folder belongs to another configuration
        (every key but output_dir counts), if a stage before a committed one is missing, or if the folder cannot be
        written.
        """
        folder = Path(config.output_dir)
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            lock = held_lock(folder)
        run = cls(folder, config, versions, lock)
        try:
            run._prepare(base_folder)
        except BaseException:
            run.close()
            raise
        return run

    @classmethod
    def read(cls, config: Config) -> RunFolder:
        """The run in `config.output_dir`, for reading only: nothing is locked, created or removed.

        Another process may be writing at the same time; committed stages do not change.
        """
        folder = Path(config.output_dir)
        return cls(folder, config, {}, free_lock(folder))

    @classmethod
    def existing(cls, config: Config) -> RunFolder:
        """The run in `config.output_dir`, for reading only, if it can continue with this configuration.

        Raises RunError as `open` does.
        """
        run = cls.read(config)
        held_lock(run.folder).release()
        refuse_other_configuration(run.folder, config)
        return run

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the log and release the lock."""
        if self._log is not None:
            self._log.close()
            self._log = None
        self._lock.release()

    # Layout

    def stage_folder(self, stage: int, task_name: str | None = None) -> Path:
        """The folder of a stage once committed. stage: from 1. task_name: None for the stage's own task."""
        return self.folder / OUTPUTS / stage_name(stage, task_name or self._task(stage))

    def adapter_folder(self, stage: int, task_name: str | None = None) -> Path:
        """A committed stage's adapter, in PEFT's format."""
        return self.stage_folder(stage, task_name) / ADAPTER

    # Progress

    def is_committed(self, stage: int) -> bool:
        """Whether a stage (from 1) is complete."""
        return self.stage_folder(stage).is_dir()

    def committed_stages(self) -> list[int]:
        """The committed stages, from 1, in order. They are always the first ones of the sequence."""
        return [stage for stage in range(1, len(self.config.tasks) + 1) if self.is_committed(stage)]

    def is_complete(self) -> bool:
        """Whether all stages are committed and the summary includes them, so that nothing is left to do."""
        return len(self.committed_stages()) == len(self.config.tasks) and not self._summary_is_outdated()

    def stage_record(self, stage: int) -> StageRecord:
        """The record of a committed stage. Raises RunError if it is missing or broken."""
        folder = self.stage_folder(stage)
        try:
            return self._record_in(folder, stage)
        except (OSError, ValueError) as error:
            raise RunError(
                f"{folder / STAGE_FILE}: missing or broken; delete {folder} and all later stages to run them again"
            ) from error

    # Writing

    @contextmanager
    def stage(self, stage: int, task_name: str | None = None) -> Iterator[Path]:
        """A temporary folder that becomes the stage's folder if the block succeeds, and is removed if it fails.

        What has been trained is kept: after `keep_trained` the folder stays even if the block fails or the process is
        killed, and the next block for this stage finds it again. The block must write the stage's record
        (`write_stage_record`); ValueError if it did not, or wrote another stage's. RunError if the stage is already
        committed, if an earlier one is not, or if the disk refuses.
        """
        final = self.stage_folder(stage, task_name)
        if self.is_committed(stage):
            raise RunError(f"{final}: already committed; delete it and all later stages to run it again")
        if missing := [k for k in range(1, stage) if not self.is_committed(k)]:
            raise RunError(f"{final}: stage {missing[0]} must be committed first")
        temporary = unfinished(final)
        with disk_errors(temporary):
            if not trained(temporary):
                remove(temporary)
                temporary.mkdir(parents=True)
        barrier()
        try:
            with disk_errors(temporary, only=DISK_FULL):
                yield temporary
            self._record_in(temporary, stage)
            publish_folder(temporary, final)
            (final / TRAINED_FILE).unlink(missing_ok=True)
            barrier()
        finally:
            if not trained(temporary):
                remove(temporary)

    @by_main
    def write_zero_shot(self, scores: Mapping[str, float], records: Mapping[str, TaskRecord]) -> None:
        """Save the scores before any training, in percent, and the records of the tasks, both by task."""
        write_zero_shot(self.folder, scores, records)

    def zero_shot(self) -> dict[str, float] | None:
        """The scores before any training, by task; None if they were not written (yet)."""
        found = read_zero_shot(self.folder)
        return None if found is None else found[0]

    def scored_records(self) -> list[tuple[int, dict[str, TaskRecord]]]:
        """For each stage that scored (0: before any training), the records of its tasks; {} from an older version."""
        before = read_zero_shot(self.folder)
        records = [self.stage_record(stage) for stage in self.committed_stages()]
        scored = [(record.stage, record.tasks) for record in records if not record.is_skipped]
        return scored if before is None else [(0, before[1]), *scored]

    def trained_records(self) -> dict[int, TaskRecord]:
        """For each stage that trained, even if it is not scored yet, the record of its task, if known."""
        tasks = {stage: records.get(self._task(stage)) for stage, records in self.scored_records() if stage}
        if (stage := len(self.committed_stages()) + 1) <= len(self.config.tasks):
            tasks[stage] = trained_task(unfinished(self.stage_folder(stage)))
        return {stage: task for stage, task in tasks.items() if task is not None}

    @by_main
    def drop_memory(self, stage: int) -> None:
        """Remove what the method kept at a committed stage."""
        (self.stage_folder(stage) / MEMORY_FILE).unlink(missing_ok=True)

    @by_main
    def write_summary(self, collision: Collision | None = None) -> Summary:
        """Write summary.json from the committed stages, and return it.

        collision: None keeps the file's.
        """
        before = self._summary()
        if collision is None and before is not None:
            collision = before.collision
        records = [self.stage_record(stage) for stage in self.committed_stages()]
        summary = summary_of(
            self.config, records, zero_shot=self.zero_shot(), versions=self.versions, collision=collision
        )
        write_summary(self.folder, summary)
        return summary

    def attach_log(self) -> None:
        """Copy the log messages of nlora and transformers to logs/train_and_infer.log until the folder is closed."""
        if self._log is None:
            self._log = RunLog(self.folder / LOG_FILE)

    def log_failure(self, error: Exception) -> None:
        """Write the error that ends the run to its log, if attached."""
        if self._log is not None:
            self._log.write_failure(error)

    def _prepare(self, base_folder: Path | None) -> None:
        """Remove the leftovers of a killed run, and check that the folder belongs to this configuration."""
        outputs = self.folder / OUTPUTS
        if not (self.folder / RUN_FILE).exists() and outputs.is_dir() and any(outputs.iterdir()):
            raise RunError(f"{self.folder}: has outputs but no {RUN_FILE}; choose another output_dir")
        # Before anything is removed: the leftovers may belong to another configuration.
        write_or_compare(self.folder, self.config, self.versions, base_folder)
        sweep(self.folder)
        following = min(len(self.committed_stages()) + 1, len(self.config.tasks))
        next_stage = unfinished(self.stage_folder(following))
        sweep(outputs, keep=next_stage if trained(next_stage) else None)
        committed = self.committed_stages()
        if missing := [k for k in range(1, max(committed, default=0)) if k not in committed]:
            gone = self.stage_folder(missing[0])
            raise RunError(f"{gone}: missing, but later stages exist; restore it, or delete those too")
        if self._summary_is_outdated():  # a new folder, or killed between a commit and its summary
            self.write_summary()

    def _summary(self) -> Summary | None:
        """The summary on the disk; None if it is missing or broken, since it can be made again from the stages."""
        try:
            return read_summary(self.folder)
        except RunError:
            return None

    def _summary_is_outdated(self) -> bool:
        summary = self._summary()
        if summary is None or len(summary.train_seconds) != len(self.committed_stages()):
            return True
        return summary.tasks != tuple(task.name for task in self.config.tasks)

    def _record_in(self, folder: Path, stage: int) -> StageRecord:
        """The record in `folder`. Raises ValueError if it is missing, broken or of another stage."""
        path = folder / STAGE_FILE
        if not path.is_file():
            raise ValueError(f"stage {stage} has no record; write_stage_record writes it")
        record = StageRecord.model_validate_json(path.read_text(encoding="utf-8"))
        if (record.stage, record.task) != (stage, self._task(stage)):
            raise ValueError(f"{path}: this is the record of stage {record.stage}, {record.task}")
        return record

    def _task(self, stage: int) -> str:
        if not 1 <= stage <= len(self.config.tasks):
            raise ValueError(f"stage {stage} of a run of {len(self.config.tasks)} tasks; stages count from 1")
        return self.config.tasks[stage - 1].name
