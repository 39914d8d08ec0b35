"""The answers of an export, as its folder is now, to the test examples that its run was scored on.

An export may differ from its run on purpose (a smaller rank, another merge, 16 bits), or by what happened to its files
since. So it is loaded again, by transformers, PEFT or safetensors alone, and answers every example.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from nlora.errors import NloraError, RunError, first_line
from nlora.evaluation.answer import Answer
from nlora.runs.answers import TextKey
from nlora.runs.checkpoint import Checkpoint
from nlora.runs.events import Progress
from nlora.runs.export.options import check_method
from nlora.runs.export.record import ExportRecord
from nlora.runs.export.reloaded import Reloaded, load
from nlora.runs.export.updates import answers_task, updates_of
from nlora.runs.export.verify import Answering, tasks_to_check


class AnsweredExport:
    """An export whose model is loaded when it is asked. checkpoint: the stage that it was made from.

    Raises AdapterError if the run's adapters are damaged.
    """

    def __init__(
        self, folder: Path, record: ExportRecord, checkpoint: Checkpoint, progress: Progress
    ) -> None:
        self._folder, self._record, self._checkpoint = folder, record, checkpoint
        self._progress = progress
        self._updates = updates_of(checkpoint)
        index = check_method(checkpoint, record.options)
        self._answers_task = answers_task(checkpoint, record.options, index, self._updates)

    @property
    def tasks(self) -> list[str]:
        """The run's tasks that this export answers; with `pertask`, not all of them."""
        names = [task.name for task in self._checkpoint.config.tasks]
        return [name for index, name in enumerate(names) if self._answers_task(index)]

    def answers(self, tasks: Sequence[str]) -> Mapping[str, Mapping[TextKey, Answer]]:
        """Its answers to all test examples of some tasks, by task and example.

        Raises InputErrors if the test files are not the ones that the run was scored on, RunError if the export
        cannot be loaded.
        """
        names = [task.name for task in self._checkpoint.config.tasks]
        checked = tasks_to_check(self._checkpoint, None, lambda index: names[index] in tasks)
        again = self._load()
        answerer = Answering(self._checkpoint, checked, self._progress).by(again.backbone)
        texts = answerer.answer(again.activate)
        return {one.task.name: one.answers(texts[one.task.name]) for one in checked}

    def _load(self) -> Reloaded:
        record = self._record
        try:
            return load(self._folder, record.options.form, record.adapters, self._checkpoint, self._updates)
        except NloraError:
            raise
        except Exception as error:  # of transformers, PEFT and safetensors, which have no common base
            raise RunError(
                f"{self._folder}: cannot be loaded: {first_line(error)}; export the run again"
            ) from error
