"""A run's folder: its layout, who may write to it, which stages are done, and how a stage is committed.

The layout is that of the released code:

    run.yaml                        the resolved configuration, versions, and when it was created
    logs/train_and_infer.log
    outputs/<k>-<task>/             one folder per committed stage
        adapter/  all_results.json  train_results.json  predict_results.json  predict_eval_predictions.jsonl
        stage.json                  the stage's row of R and its timings
        checksums.json              of what later stages depend on
    resume/<k>-<task>/step-<n>/     of a half-trained stage; gone once it is committed
    zero_shot.json                  scores before any training, if wanted
    summary.json

A stage is written to a temporary folder, which is renamed once everything in it is on the disk. Only one process may
write to a run: it holds a lock of the operating system, which is released when the process ends.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from filelock import FileLock

from nlora.config.schema import Config
from nlora.errors import RunError
from nlora.models.processes import barrier, by_main
from nlora.runs.atomic import DISK_FULL, disk_errors, publish_folder, remove, sweep, write_json
from nlora.runs.checksums import write_checksums
from nlora.runs.interference_file import ANALYSIS_FILE
from nlora.runs.layout import (
    LOG_FILE,
    MEMORY_FILE,
    OUTPUTS,
    REPORT_FILE,
    RUN_FILE,
    STAGE_FILE,
    unfinished,
)
from nlora.runs.lock import free_lock, held_lock
from nlora.runs.log_file import RunLog
from nlora.runs.resume_points import sweep_points
from nlora.runs.run_yaml import refuse_other_configuration, write_or_compare
from nlora.runs.stage_files import trained, write_zero_shot
from nlora.runs.stored_run import StoredRun
from nlora.runs.summary import Collision, StageRecord, Summary, write_summary
from nlora.runs.task_records import TaskRecord


def write_stage_record(folder: Path, record: StageRecord) -> None:
    """Write a stage's record to its folder, before the stage is committed."""
    write_json(folder / STAGE_FILE, record.model_dump(mode="json"))


class RunFolder(StoredRun):
    """The folder of one run, locked while open. Open it with `RunFolder.open`; it is a context manager."""

    def __init__(self, folder: Path, config: Config, versions: Mapping[str, str], lock: FileLock) -> None:
        super().__init__(folder, config, versions)
        self._lock = lock
        self._log: RunLog | None = None

    @classmethod
    def open(
        cls,
        config: Config,
        versions: Mapping[str, str],
        base_folder: Path | None = None,
        *,
        damaged: Collection[int] = (),
    ) -> RunFolder:
        """Create or resume the run of `config.output_dir`.

        versions: of the packages that affect the outcome, for run.yaml and the summary. If they differ from the
            folder's, they are recorded too and logged; they do not stop a run.
        base_folder: where relative paths in the configuration are looked up after the current folder; recorded.
        damaged: stages to be repaired (`nlora.runs.repair`). They count as not committed.

        Raises RunError if another process uses the folder, if the folder belongs to another configuration
        (every key but output_dir counts), if a stage before a committed one is missing, or if the folder cannot be
        written.
        """
        folder = Path(config.output_dir)
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            lock = held_lock(folder)
        run = cls(folder, config, versions, lock)
        run.damaged.update(damaged)
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
        with disk_errors(run.folder):
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

    # Writing

    @contextmanager
    def stage(self, stage: int) -> Iterator[Path]:
        """A temporary folder that becomes the stage's folder if the block succeeds, and is removed if it fails.

        What has been trained is kept: after `keep_trained` the folder stays even if the block fails or the process is
        killed, and the next block for this stage finds it again. The block must write the stage's record
        (`write_stage_record`); ValueError if it did not, or wrote another stage's. RunError if the stage is already
        committed, if an earlier one is not, or if the disk refuses.
        """
        final = self.stage_folder(stage)
        if self.is_committed(stage):
            raise RunError(f"{final}: already committed; delete it and all later stages to run it again")
        if missing := [k for k in range(1, stage) if not self.is_committed(k)]:
            raise RunError(f"{final}: stage {missing[0]} must be committed first")
        temporary = unfinished(final)
        with disk_errors(temporary):
            if not trained(temporary):
                remove(temporary)
                temporary.mkdir(parents=True)
            sweep(temporary)  # half-written files of a process that was killed
        barrier()
        try:
            with disk_errors(temporary, only=DISK_FULL):
                yield temporary
            if not (self.folder / RUN_FILE).is_file():
                what = "was moved or removed while the run was writing; give its new place as output_dir"
                raise RunError(f"{self.folder}: {what}")
            if not (temporary / STAGE_FILE).is_file():
                raise ValueError(f"stage {stage} has no record; write_stage_record writes it")
            self._record_in(temporary, stage)
            write_checksums(temporary, self.weights_before(stage))
            for outdated in (ANALYSIS_FILE, REPORT_FILE):  # of other stages than there are now
                (self.folder / outdated).unlink(missing_ok=True)
            publish_folder(temporary, final)
            # A stage that was repaired has later ones, and the next of them may be half-trained.
            later = range(stage + 1, len(self.config.tasks) + 1)
            sweep_points(self.folder, keep=[self.resume_folder(k) for k in later])
            barrier()
        finally:
            if not trained(temporary):
                remove(temporary)

    @by_main
    def write_zero_shot(self, scores: Mapping[str, float], records: Mapping[str, TaskRecord]) -> None:
        """Save the scores before any training, in percent, and the records of the tasks, both by task."""
        write_zero_shot(self.folder, scores, records)

    @by_main
    def drop_memory(self, stage: int) -> None:
        """Remove what the method kept at a committed stage."""
        (self.stage_folder(stage) / MEMORY_FILE).unlink(missing_ok=True)

    @by_main
    def write_summary(self, collision: Collision | None = None) -> Summary:
        """Write summary.json from the committed stages, and return it.

        collision: None keeps the file's, if that is of the same stages.
        """
        before, summary = self._summary(), self._summary_now(collision)
        if collision is None and before is not None and before.agrees_with(summary):
            summary = summary.model_copy(update={"collision": before.collision})
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
        self.refuse_gap()
        sweep(self.folder)
        # Also after a stage that is to be repaired, the next one may be half-trained, or not scored yet.
        stages = range(1, len(self.config.tasks) + 1)
        last = max((k for k in stages if self.stage_folder(k).is_dir()), default=0)
        following = {len(self.committed_stages()) + 1, last + 1} & set(stages)
        next_stages = [unfinished(self.stage_folder(stage)) for stage in following]
        sweep(outputs, keep=[folder for folder in next_stages if trained(folder)])
        sweep_points(self.folder, keep=[self.resume_folder(stage) for stage in following])
        if self._summary_is_outdated():  # a new folder, or killed between a commit and its summary
            self.write_summary()
