"""Adapters that existed before a run, which takes them as tasks learned already."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nlora.config.paths import exists, expanded
from nlora.config.schema import Config
from nlora.errors import AdapterError, InputErrors, Problem
from nlora.methods.base import Method
from nlora.runs.checksums import damaged_weights
from nlora.runs.layout import ADAPTER, OUTPUTS, stage_name, unfinished
from nlora.runs.stage_files import trained

if TYPE_CHECKING:
    from torch import nn

    from nlora.models.lora_factors import AdapterState


@dataclass(frozen=True, slots=True)
class Adopted:
    """An adapter that existed before the run: its folder and its update."""

    folder: Path
    update: AdapterState


def adopted_adapters(
    config: Config, base_folder: Path, methods: Sequence[Method], skeleton: nn.Module
) -> dict[int, Adopted]:
    """The adapters from elsewhere, by stage. Raises InputErrors for those that fit neither the model nor the method."""
    from nlora.models.adapter_source import load_adapter, locate_adapter
    from nlora.models.merged_updates import check_fits

    problems: list[Problem] = []
    adopted = {}
    layers = dict(skeleton.named_modules())
    taken: set[Path] = set()
    for stage, (source, method) in enumerate(zip(config.tasks, methods, strict=True), start=1):
        if source.adapter is None:
            continue
        key = ("tasks", stage - 1, "adapter")
        try:
            here = expanded(source.adapter)
            is_there = exists(there := base_folder / here) and not exists(here)
            own = _own_copy(Path(config.output_dir, OUTPUTS, stage_name(stage, source.name)))
            folder = own or locate_adapter(str(there) if is_there else source.adapter).resolve()
            update = load_adapter(folder, source.adapter)
        except AdapterError as error:
            problems.append(Problem.at(key, str(error)))
            continue
        if folder in taken:
            problems.append(Problem.at(key, f"{source.adapter} is given twice; its update would count twice"))
        taken.add(folder)
        try:
            check_fits(update, {name: layers[name] for name in update if name in layers})
        except AdapterError as error:
            way_out = f"give one that was made for {config.model}"
            problems.append(Problem.at(key, f"{source.adapter}: {error}; {way_out}"))
            continue
        why = method.check_adopted(update, config.lora)
        if not why and method.updates == "continued" and stage > 1:
            why = f"{method.name} continues one adapter, so only the first task may be one; this one would replace it"
        if not why and method.updates == "continued" and update.keys() != _targets(skeleton, config):
            why = (
                f"{method.name} continues the adapter, which must update the layers of lora.targets; name "
                f"its own there: {', '.join(sorted({name.rpartition('.')[2] for name in update}))}"
            )
        if why:
            problems.append(Problem.at(key, why))
        adopted[stage] = Adopted(folder, update)
    if problems:
        raise InputErrors(problems)
    return adopted


def _own_copy(stage: Path) -> Path | None:
    """The adapter that the run has copied already if its weights are whole; a stage may have to be scored again."""
    for folder in (stage, unfinished(stage)):
        is_whole = folder == stage or trained(folder) is not None
        if is_whole and (folder / ADAPTER).is_dir() and not damaged_weights(folder):
            return folder / ADAPTER
    return None


def _targets(skeleton: nn.Module, config: Config) -> set[str]:
    from nlora.models.target_modules import target_modules

    return {module.name for module in target_modules(skeleton, config.lora)}
