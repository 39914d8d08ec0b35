"""`nlora run --repair`: what is damaged in a run's folder is done again, and nothing else.

A stage with damaged weights is trained again, one with damaged scores is only scored again. What was there is moved to
`damaged/` in the run's folder. Training depends on the seed and the number of the stage alone, so a stage that is
trained again mostly ends with the same bytes, and all later stages stay. If it does not (another machine, other
versions), the stages that were trained on top of it are done again, too.

The order of the work is that of the sequence, so each stage is repaired when everything before it is whole. A repair
that is stopped continues with the same command.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from pydantic import ValidationError
from safetensors import SafetensorError, safe_open

from nlora.config.schema import Config
from nlora.errors import RunError
from nlora.methods.base import Method
from nlora.methods.registry import find
from nlora.runs.atomic import disk_errors
from nlora.runs.checksums import Damage, Part, damage, read_checksums
from nlora.runs.events import Progress
from nlora.runs.folder import RunFolder
from nlora.runs.layout import (
    DAMAGED,
    MEMORY_FILE,
    PREDICTIONS_FILE,
    STAGE_FILE,
    TEMPORARY,
    unfinished,
)
from nlora.runs.stage_files import keep_trained, trained
from nlora.runs.summary import StageRecord
from nlora.training.result import NOTHING_TRAINED

Damages = Mapping[int, Sequence[Damage]]
"""By stage; only damaged stages are in it."""


def damage_to_repair(run: RunFolder, base_folder: Path) -> Damages:
    """What a repair does again: what is damaged, and stages whose memory a damaged one needs to be trained again.

    base_folder: where a method's file is looked for, after the current folder.
    """
    found = _find_damage(run, base_folder)
    for stage in range(len(run.config.tasks), 1, -1):
        memory = run.stage_folder(stage - 1) / MEMORY_FILE
        if trains(found.get(stage, ())) and not trains(found.get(stage - 1, ())) and _has_lost(memory):
            why = f"was deleted when stage {stage} was committed, which needs it to be trained again"
            found[stage - 1] = [Damage(memory, "weights", why)]
    return found


def refuse_damage(run: RunFolder, base_folder: Path) -> None:
    """Raise RunError with the first damaged file of a run that is about to resume.

    Answers that were deleted, to save space, are no damage.
    """
    found = [damaged for damages in _find_damage(run, base_folder).values() for damaged in damages]
    if found := [d for d in found if d.path.name != PREDICTIONS_FILE or d.path.exists()]:
        more = f" ({len(found) - 1} more files are damaged)" if len(found) > 1 else ""
        raise RunError(f"{found[0]}{more}")


def _find_damage(run: RunFolder, base_folder: Path) -> dict[int, list[Damage]]:
    """Of the committed stages, and of one that is trained but not scored yet."""
    stages = range(1, len(run.config.tasks) + 1)
    last = max((stage for stage in stages if run.stage_folder(stage).is_dir()), default=0)
    found: dict[int, list[Damage]] = {}
    for stage in stages:
        folder = run.stage_folder(stage)
        is_trained = trained(unfinished(folder)) is not None
        if folder.is_dir():
            whole = damage(folder, is_last=stage == last) or _unreadable(folder)
            found[stage] = whole or _on_other_weights(run, base_folder, stage, folder)
            continue
        if is_trained:
            found[stage] = [d for d in damage(unfinished(folder), is_last=True) if d.part == "weights"]
            found[stage] = found[stage] or _on_other_weights(run, base_folder, stage, unfinished(folder))
        if stage < last and not found.get(stage):
            found[stage] = [Damage(folder, "scores" if is_trained else "weights", "is missing")]
    return {stage: damages for stage, damages in found.items() if damages}


def _on_other_weights(run: RunFolder, base_folder: Path, stage: int, folder: Path) -> list[Damage]:
    """The stage, if the one before it has been trained again since: a repair was stopped between the two."""
    before, after = run.weights_before(stage), _after(folder)
    if before is None or after is None or before == after:
        return []
    method = find(run.config.method.name, base_folder)
    part: Part = "scores" if _is_independent(run.config, stage, method) else "weights"
    return [Damage(folder, part, f"was trained after other weights of stage {stage - 1} than it has now")]


def _is_independent(config: Config, stage: int, method: Method | type[Method]) -> bool:
    """Whether what a stage trains does not depend on the weights of the stages before it."""
    if config.tasks[stage - 1].adapter is not None:
        return True
    return (method.updates == "per_task" or method.at_once) and not config.replay.by_loss


class Repair:
    """The repair of a run that is open for writing. found: what is damaged. methods: one for each stage."""

    def __init__(self, run: RunFolder, found: Damages, methods: Sequence[Method], progress: Progress) -> None:
        self._run, self._found, self._methods, self._progress = run, found, methods, progress

    def prepare(self, stage: int) -> None:
        """Move aside what has to be done again at a stage; all stages before it are whole."""
        run, found = self._run, self._found.get(stage, ())
        run.damaged.discard(stage)
        is_committed = run.is_committed(stage)
        folder = run.stage_folder(stage) if is_committed else unfinished(run.stage_folder(stage))
        if trained(folder) is None and not is_committed:
            if found:
                self._say(stage, found[0].path, f"{found[0].what}; the stage is trained again")
            return
        before = run.weights_before(stage)
        follows = before is None or before == _after(folder)
        is_independent = _is_independent(run.config, stage, self._methods[stage - 1])
        needs_training = trains(found) or not (follows or is_independent)
        what = found[0].what if found else "an earlier stage has other weights now"
        path = found[0].path if found else folder
        is_marked = trained(folder) is not None
        is_adopted = run.config.tasks[stage - 1].adapter is not None
        if is_adopted and not (needs_training or is_marked) and (found or not follows):
            keep_trained(folder, asdict(NOTHING_TRAINED))  # older versions left no such mark
        if needs_training or (found and trained(folder) is None):
            there = self._aside(folder)
            with disk_errors(there):
                there.parent.mkdir(exist_ok=True)
                folder.rename(there)
            is_skipped = self._methods[stage - 1].at_once and stage < len(self._run.config.tasks)
            then = "trains nothing now, and its scores are gone" if is_skipped else "is trained again"
            self._say(stage, path, f"{what}; the stage {then}, its files are in {there}")
        elif is_committed and (found or not follows):
            self._score_again(folder, found)
            self._say(stage, path, f"{what}; the stage is scored again")
        if run.is_committed(stage) and stage > 1:
            (run.stage_folder(stage - 1) / MEMORY_FILE).unlink(missing_ok=True)

    def _score_again(self, folder: Path, found: Sequence[Damage]) -> None:
        """Make a committed stage one that is trained but not scored yet."""
        there = self._aside(folder)
        with disk_errors(there):
            for damaged in found:
                if damaged.path.is_file():
                    there.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(damaged.path, there)
            folder.rename(unfinished(folder))

    def _aside(self, folder: Path) -> Path:
        """A name in `damaged/` that is still free."""
        name = folder.name.removeprefix(TEMPORARY)
        there, number = self._run.folder / DAMAGED / name, 1
        while there.exists():
            number += 1
            there = there.with_name(f"{name}.{number}")
        return there

    def _say(self, stage: int, path: Path, what: str) -> None:
        self._progress.say(f"stage {stage}: {path}: {what}")


def trains(found: Sequence[Damage]) -> bool:
    """Whether the repair of a stage's damage trains it again."""
    return any(damaged.part == "weights" for damaged in found)


def _after(folder: Path) -> str | None:
    sums = read_checksums(folder)
    return None if sums is None else sums.after


def _has_lost(memory: Path) -> bool:
    """Whether a stage had a memory that is no longer there."""
    sums = read_checksums(memory.parent) if memory.parent.is_dir() else None
    return sums is not None and MEMORY_FILE in sums.files and not memory.exists()


def _unreadable(folder: Path) -> list[Damage]:
    """Damage in a stage without checksums: a record or a file of tensors that cannot be read."""
    if read_checksums(folder) is not None:
        return []
    try:
        StageRecord.model_validate_json((folder / STAGE_FILE).read_bytes())
    except (OSError, ValidationError):
        return [Damage(folder / STAGE_FILE, "scores", "is missing or broken")]
    for path in sorted(folder.rglob("*.safetensors")):
        try:
            with safe_open(path, framework="numpy"):
                pass
        except (OSError, SafetensorError) as error:
            return [Damage(path, "weights", f"cannot be read ({error})")]
    return []
