"""The updates that a next task starts after: of adapters in PEFT's format, of factors in memory, or of whole runs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn, zeros

from nlora.analysis.adapter_sources import load_from, located
from nlora.analysis.of_run import is_run
from nlora.api.run import Run
from nlora.errors import AdapterError, NloraError
from nlora.models.lora_factors import AdapterState, LoraFactors
from nlora.models.merged_updates import check_fits
from nlora.models.target_modules import linear_layer
from nlora.runs.checkpoint import read_stage
from nlora.runs.export.updates import StageUpdates

Earlier = Run | str | os.PathLike[str] | AdapterState
"""A run or its folder, a PEFT LoRA folder, a hub id, or factors in memory."""


def earlier_updates(after: Earlier | Sequence[Earlier], backbone: nn.Module) -> list[AdapterState]:
    """The updates of everything that was learned before, in order; a run counts with each of its stages.

    Raises AdapterError, with the name of the source, if one cannot be read or does not fit the backbone.
    """
    sources = [after] if isinstance(after, Run | str | os.PathLike | Mapping) else list(after)
    updates = []
    for number, source in enumerate(sources, start=1):
        if isinstance(source, Mapping):
            name, states = f"adapter {number}", [dict(source)]
        else:
            name = str(source.folder) if isinstance(source, Run) else os.fspath(source)
            states = _of_run(name) if is_run(Path(name)) else [load_from(located(name), name)]
        for state in states:
            _check(name, state, backbone)
        updates += states
    return updates


def with_all_modules(update: AdapterState, like: AdapterState) -> AdapterState:
    """The update with zeros for the modules that only the other one has: it leaves these as they were."""
    nothing = {
        name: LoraFactors(_zeros(1, f.shape[1]), _zeros(f.shape[0], 1), 1.0)
        for name, f in like.items()
        if name not in update
    }
    return {**update, **nothing}


def _zeros(*size: int) -> Tensor:
    return zeros(size)


def _of_run(folder: str) -> list[AdapterState]:
    stage = read_stage(Path(folder), None)
    method: Any = stage.method
    if method.trains == "weights":
        raise AdapterError(
            f"{folder}: {method.name} trains weights, not adapters; give the model of Run.model()"
        )
    if method.updates == "per_task":
        raise AdapterError(
            f"{folder}: {method.name} has a model for each task; name the adapters that should stay active"
        )
    return [update.state for update in StageUpdates(stage).active_for(0)]


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
