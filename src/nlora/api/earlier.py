"""What a next task starts after: adapters in PEFT's format, factors in memory, or whole runs; and its examples."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nlora.analysis.of_run import looks_like_run
from nlora.api.run import Run
from nlora.config.paths import at_home
from nlora.data.collate import IGNORED
from nlora.data.task import TokenizedExample
from nlora.errors import AdapterError, InputErrors, NloraError, Problem
from nlora.methods.base import Memory
from nlora.models.adapter_source import load_adapter, locate_adapter
from nlora.models.lora_adapter import ADAPTER
from nlora.models.lora_factors import AdapterState, LoraFactors
from nlora.models.merged_updates import check_fits
from nlora.models.target_modules import linear_layer
from nlora.runs.checkpoint import read_stage
from nlora.runs.export.updates import StageUpdates
from nlora.runs.layout import STAGE_FILE
from nlora.runs.update_history import load_memory, memory_tasks

Earlier = Run | str | os.PathLike[str] | AdapterState
"""A run or its folder, a PEFT LoRA folder, a hub id, or factors in memory."""


@dataclass(frozen=True, slots=True, eq=False)
class EarlierTask:
    """What was learned at an earlier task, or at several, if a run made one update of them.

    name: for messages. folder: of the adapter, resolved; None for factors in memory. tasks: how many.
    """

    name: str
    update: AdapterState
    folder: Path | None
    tasks: int = 1

    def memory(self) -> tuple[Memory, int | None]:
        """What the method kept beside the adapter: `NextTask.save` in its folder, a run in the stage's.

        Also of how many tasks that is; None if the file does not say.
        """
        if self.folder is None:
            return {}, None
        if of_run(self.folder):
            # Of `2-mail`: a run's memory is of all stages so far.
            stage = self.folder.parent.name.partition("-")[0]
            return load_memory(self.folder.parent), int(stage) if stage.isdecimal() else None
        return load_memory(self.folder), memory_tasks(self.folder)


def earlier_tasks(after: Earlier | Sequence[Earlier], backbone: nn.Module) -> list[EarlierTask]:
    """Everything that was learned before, in order; a run counts with each of its stages.

    Raises AdapterError, with the name of the source, if one cannot be read or does not fit the backbone; InputErrors if
    one is given twice.
    """
    single = isinstance(after, Run | str | os.PathLike | Mapping)
    sources: list[Any] = [after] if single else list(after) if isinstance(after, Iterable) else [after]
    tasks: list[EarlierTask] = []
    for number, source in enumerate(sources, start=1):
        if not _is_source(source):
            what = f"must be adapters, runs, or factors in memory, not {source!r:.100}"
            raise InputErrors([Problem("after", what)])
        if isinstance(source, Mapping):
            tasks.append(EarlierTask(f"adapter {number}", dict(source), None))
            continue
        name = str(source.folder) if isinstance(source, Run) else at_home(os.fspath(source))
        if looks_like_run(Path(name)):
            tasks += _of_run(name)
        else:
            folder = locate_adapter(name)
            tasks.append(EarlierTask(name, load_adapter(folder, name), folder.resolve()))
    for number, task in enumerate(tasks):
        _check(task.name, task.update, backbone)
        if task.folder is not None and task.folder in [other.folder for other in tasks[:number]]:
            raise InputErrors([Problem("after", f"{task.name} is given twice; its update would count twice")])
    return tasks


def of_run(folder: Path) -> bool:
    """Whether a folder is the adapter of a run's stage."""
    return folder.name == ADAPTER and (folder.parent / STAGE_FILE).is_file()


def tokenized(rows: Iterable[Mapping[str, Any]], *, encoder_decoder: bool) -> list[TokenizedExample]:
    """Examples of a trainer, each with input_ids and labels, as prompts and answers.

    What its attention_mask hides is padding. Raises InputErrors, with the number of the example (from 0), if its labels
    are not those of its last tokens.
    """
    examples = []
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping):
            what = f"example {number} must be a mapping with input_ids and labels, not {row!r:.60}"
            raise InputErrors([Problem("examples", what)])
        if not {"input_ids", "labels"} <= row.keys():
            raise InputErrors([Problem("examples", f"example {number} lacks input_ids or labels")])
        ids, labels = (torch.as_tensor(row[key]).tolist() for key in ("input_ids", "labels"))
        if not ids or isinstance(ids[0], list):
            what = f"the input_ids of example {number} must be those of one text, not of none or of a batch"
            raise InputErrors([Problem("examples", what)])
        mask = torch.as_tensor(row.get("attention_mask", [1] * len(ids))).tolist()
        if len(mask) != len(ids):
            what = f"the attention_mask of example {number} has {len(mask)} entries for {len(ids)} input_ids"
            raise InputErrors([Problem("examples", what)])
        if not encoder_decoder and len(labels) == len(ids):
            labels = [label for label, is_text in zip(labels, mask, strict=True) if is_text]
        ids = [token for token, is_text in zip(ids, mask, strict=True) if is_text]
        if encoder_decoder:
            examples.append(TokenizedExample(ids, [label for label in labels if label != IGNORED]))
            continue
        begin = next((i for i, label in enumerate(labels) if i and label != IGNORED), len(labels))
        if not ids[begin:] or ids[begin:] != labels[begin:]:
            what = (
                f"the labels of example {number} should be {IGNORED} for its prompt, then equal its input_ids"
            )
            raise InputErrors([Problem("examples", what + ", without padding")])
        examples.append(TokenizedExample(ids[:begin], ids[begin:]))
    return examples


def _is_source(source: Any) -> bool:
    if isinstance(source, Mapping):
        return all(isinstance(factors, LoraFactors) for factors in source.values())
    return isinstance(source, Run | str | os.PathLike)


def _of_run(folder: str) -> list[EarlierTask]:
    stage = read_stage(Path(folder), None)
    method: Any = stage.method
    if method.trains == "weights":
        raise AdapterError(
            f"{folder}: {method.name} trains weights, not adapters; give the model of Run.model()"
        )
    if method.trains == "prompts":
        raise AdapterError(
            f"{folder}: {method.name} trains soft prompts, not adapters, and nothing can follow them"
        )
    if method.updates == "per_task":
        raise AdapterError(
            f"{folder}: {method.name} has a model for each task; name the adapters that should stay active"
        )
    *earlier, last = StageUpdates(stage).active_for(stage.stage - 1)
    found = [EarlierTask(folder, update.state, update.folder.resolve()) for update in earlier]
    return [*found, EarlierTask(folder, last.state, last.folder.resolve(), stage.stage - len(earlier))]


def _check(source: str, state: AdapterState, backbone: nn.Module) -> None:
    """Raises AdapterError if the update does not fit the backbone's layers."""
    try:
        check_fits(state, {name: linear_layer(backbone, name) for name in state})
    except AttributeError:
        names = {name for name, _ in backbone.named_modules()}
        first = next(name for name in state if name not in names)
        raise AdapterError(
            f"{source}: updates {first}, which the model does not have; it is of another model"
        ) from None
    except NloraError as error:
        raise AdapterError(f"{source}: {error}; it is of another model") from error
