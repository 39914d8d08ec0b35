"""What a run's folder holds: where its parts are, which stages are committed, and their records. Only for reading."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import takewhile
from pathlib import Path

from nlora.config.schema import Config
from nlora.errors import RunError, unusable
from nlora.runs.checksums import weights_digest
from nlora.runs.general_scores import GeneralScores, read_before
from nlora.runs.layout import ADAPTER, OUTPUTS, STAGE_FILE, stage_name, unfinished
from nlora.runs.resume_points import stage_folder
from nlora.runs.stage_files import read_zero_shot, refuse_gap, trained_task
from nlora.runs.summary import Collision, StageRecord, Summary, read_summary, summary_of
from nlora.runs.task_records import TaskRecord


class StoredRun:
    """The parts of a run's folder. Another process may be writing to it; committed stages do not change.

    damaged: stages to be repaired; they count as not committed.
    """

    def __init__(self, folder: Path, config: Config, versions: Mapping[str, str]) -> None:
        self.folder = folder
        self.config = config
        self.versions = dict(versions)
        self.damaged: set[int] = set()

    # Layout

    def stage_folder(self, stage: int) -> Path:
        """The folder of a stage once committed. stage: from 1."""
        return self.folder / OUTPUTS / stage_name(stage, self._task(stage))

    def adapter_folder(self, stage: int) -> Path:
        """A committed stage's adapter, in PEFT's format."""
        return self.stage_folder(stage) / ADAPTER

    def resume_folder(self, stage: int) -> Path:
        """Where the resume points of a stage are until it is committed."""
        return stage_folder(self.folder, stage, self._task(stage))

    # Progress

    def is_committed(self, stage: int) -> bool:
        """Whether a stage (from 1) is complete."""
        return stage not in self.damaged and self.stage_folder(stage).is_dir()

    def committed_stages(self) -> list[int]:
        """The committed stages, from 1, in order: the first ones of the sequence, without a gap."""
        return list(takewhile(self.is_committed, range(1, len(self.config.tasks) + 1)))

    def refuse_gap(self) -> None:
        """Raise RunError if a stage is missing although a later one is committed, unless it is to be repaired."""
        stages = range(1, len(self.config.tasks) + 1)
        refuse_gap([self.stage_folder(stage) for stage in stages], repaired=self.damaged)

    def is_learned(self) -> bool:
        """Whether all stages are committed."""
        return len(self.committed_stages()) == len(self.config.tasks)

    def lacks_zero_shot(self) -> bool:
        """Whether scores before any training are wanted, and a task that has other scores has none of these."""
        if not self.config.evaluate.zero_shot:
            return False
        scored = {task for stage in self.committed_stages() for task in self.stage_record(stage).scores}
        present = {task.name for task in self.config.tasks}  # others were scored before they left the list
        return not scored & present <= (self.zero_shot() or {}).keys()

    def lacks_general(self) -> bool:
        """Whether stages have numbers of what the model knew before, but the untouched model has none."""
        if self.config.evaluate.general is None or self.general_before() is not None:
            return False
        return any(self.stage_record(stage).general for stage in self.committed_stages())

    def is_complete(self) -> bool:
        """Whether all stages are committed and the summary is made from them, so that nothing is left to do."""
        return self.is_learned() and not self._summary_is_outdated()

    def stage_record(self, stage: int) -> StageRecord:
        """The record of a committed stage. Raises RunError if it is missing or broken, or cannot be read."""
        folder = self.stage_folder(stage)
        try:
            return self._record_in(folder, stage)
        except (OSError, ValueError) as error:
            raise unusable(folder / STAGE_FILE, error, "scored") from error

    def weights_before(self, stage: int) -> str | None:
        """A digest of the weights of all stages before this one; None for the first, or if it is not known."""
        return weights_digest(self.stage_folder(stage - 1)) if stage > 1 else None

    def zero_shot(self) -> dict[str, float] | None:
        """The scores before any training, by task; None if they were not written (yet)."""
        found = read_zero_shot(self.folder)
        return None if found is None else found[0]

    def general_before(self) -> GeneralScores | None:
        """What the untouched model knew; None if it was not measured (yet)."""
        return read_before(self.folder)

    def scored_records(self) -> list[tuple[int, dict[str, TaskRecord]]]:
        """For each stage that scored (0: before any training), the records of its tasks; {} from an older version.

        A stage scores nothing if the method trained nothing at it, or if its adapters came without test examples.
        """
        before, tasks_before = read_zero_shot(self.folder) or ({}, {})
        committed = filter(self.is_committed, range(1, len(self.config.tasks) + 1))
        records = [self.stage_record(stage) for stage in committed]
        scored = [(record.stage, record.tasks) for record in records if record.scores]
        return [(0, tasks_before), *scored] if before else scored

    def trained_records(self) -> dict[int, TaskRecord]:
        """For each stage that trained, even if it is not scored yet, the record of its task, if known."""
        tasks = {stage: records.get(self._task(stage)) for stage, records in self.scored_records() if stage}
        if (stage := len(self.committed_stages()) + 1) <= len(self.config.tasks):
            tasks[stage] = trained_task(unfinished(self.stage_folder(stage)))
        return {stage: task for stage, task in tasks.items() if task is not None}

    def _summary(self) -> Summary | None:
        """The summary on the disk; None if it is missing or broken, since it can be made again from the stages."""
        try:
            return read_summary(self.folder)
        except RunError:
            return None

    def _summary_is_outdated(self) -> bool:
        summary = self._summary()
        return summary is None or not summary.agrees_with(self._summary_now(summary.collision))

    def _summary_now(self, collision: Collision | None) -> Summary:
        records = [self.stage_record(stage) for stage in self.committed_stages()]
        return summary_of(
            self.config,
            records,
            zero_shot=self.zero_shot(),
            general_before=self.general_before(),
            versions=self.versions,
            collision=collision,
        )

    def _record_in(self, folder: Path, stage: int) -> StageRecord:
        """The record in `folder`. Raises OSError if it cannot be read, ValueError if broken or of another stage."""
        path = folder / STAGE_FILE
        record = StageRecord.model_validate_json(path.read_text(encoding="utf-8"))
        if (record.stage, record.task) != (stage, self._task(stage)):
            raise ValueError(f"{path}: this is the record of stage {record.stage}, {record.task}")
        return record

    def _task(self, stage: int) -> str:
        if not 1 <= stage <= len(self.config.tasks):
            raise ValueError(f"stage {stage} of a run of {len(self.config.tasks)} tasks; stages count from 1")
        return self.config.tasks[stage - 1].name
