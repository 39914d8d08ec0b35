"""Which updates make up a stage's model, read from the folders of the stages. No backbone is needed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from nlora.models.lora_adapter import ADAPTER
from nlora.models.lora_factors import AdapterState, load_factors
from nlora.runs.checkpoint import Checkpoint
from nlora.runs.checksums import refuse_damaged_weights
from nlora.runs.export.options import ExportOptions
from nlora.runs.layout import stage_name


@dataclass(frozen=True, slots=True, eq=False)
class StageUpdate:
    """What one stage trained, or what a method has merged up to it. folder: the stage's adapter in PEFT's format."""

    stage: int
    task: str
    folder: Path
    state: AdapterState


class StageUpdates:
    """The updates of a run's stages up to one of them.

    trained: of the stages that trained something, in order; if the last one trained all tasks anew, of that one only.
    Raises AdapterError if an adapter is missing or damaged.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        run, self._method = checkpoint.run, checkpoint.method
        self._states: list[AdapterState] = []
        self.trained: list[StageUpdate] = []
        for k in range(1, checkpoint.stage + 1):
            if run.stage_record(k).is_skipped:
                self._states.append({})
                continue
            folder = run.stage_folder(k) / ADAPTER
            refuse_damaged_weights(folder.parent)
            state = load_factors(folder)
            self._states.append(state)
            self.trained.append(StageUpdate(k, checkpoint.config.tasks[k - 1].name, folder, state))
        if self._method.at_once:
            self.trained = self.trained[-1:]

    def active_for(self, index: int) -> list[StageUpdate]:
        """Those that answer task `index` (from 0)."""
        by_state = {id(update.state): update for update in self.trained}
        active = [state for state in self._method.answering(self._states, index) if state]
        return [by_state.get(id(state)) or replace(self.trained[-1], state=state) for state in active]

    def places(self, index: int) -> list[int]:
        """The positions in `trained` of those that answer task `index`."""
        stages = [update.stage for update in self.trained]
        return [stages.index(update.stage) for update in self.active_for(index)]


def updates_of(checkpoint: Checkpoint) -> StageUpdates | None:
    """The updates of the run's stages; None for a method that trains the weights themselves."""
    return StageUpdates(checkpoint) if checkpoint.method.trains == "adapter" else None


def answers_task(
    checkpoint: Checkpoint, options: ExportOptions, index: int, updates: StageUpdates | None
) -> Callable[[int], bool]:
    """Which tasks an export answers, by their index: those with an update, or the one that it was asked for.

    index: as `check_method` returned.
    """
    if updates is None or not checkpoint.method.needs_task:
        return lambda asked: True
    if options.form == "adapters":
        return lambda asked: bool(updates.active_for(asked))
    return lambda asked: asked == index


def folder_names(updates: list[StageUpdate]) -> list[str]:
    """A folder name for each update: its task's, safe on every system; with the stage if names would be the same."""
    names = [stage_name(u.stage, u.task).partition("-")[2] for u in updates]
    if len({name.casefold() for name in names}) < len(names):
        return [stage_name(u.stage, u.task) for u in updates]
    return names
