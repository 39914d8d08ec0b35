"""The update of every stage so far, and which of them are active in the backbone right now.

A method may keep more than updates from one stage to the next (`Method.end_task`). That is its memory, which is saved
with the stage. Only the latest memory is ever needed, so a stage's file is deleted once the next stage is committed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError
from torch import nn

from nlora.errors import AdapterError, ModelError, to_repair, unusable
from nlora.methods.base import Memory, Method
from nlora.models.inspection import is_sharded
from nlora.models.lora_adapter import ADAPTER
from nlora.models.lora_factors import AdapterState
from nlora.models.merged_updates import MergedUpdates
from nlora.models.processes import by_main
from nlora.models.target_modules import is_quantized, linear_layer, shares_weight, takes_updates
from nlora.models.unmerged_updates import UnmergedUpdates
from nlora.runs.checksums import refuse_damaged_weights
from nlora.runs.layout import MEMORY_FILE

_TASKS = "tasks"
"""The key of a memory file's metadata that says of how many tasks it is."""


class UpdateHistory:
    """The updates over one backbone.

    updates: of each stage, in order; empty for a stage that trained no adapter.
    memory: what the method kept at the latest stage.

    module_names: the layers that the run trains. others: further layers that adapters from elsewhere update.
    """

    def __init__(self, model: nn.Module, module_names: Sequence[str], others: Iterable[str] = ()) -> None:
        self.updates: list[AdapterState] = []
        self.memory: Memory = {}
        self._model, self._names = model, list(module_names)
        self._quantized = any(is_quantized(linear_layer(model, name)) for name in module_names)
        self._holder = keep_updates(model, list(dict.fromkeys([*module_names, *others])))
        self._active: list[AdapterState] = []

    @property
    def is_merged(self) -> bool:
        """Whether active updates are merged into the backbone's weights, rather than added to what layers compute."""
        return isinstance(self._holder, MergedUpdates)

    # A stage joins the history

    def add(self, update: AdapterState) -> None:
        """Append what a stage has trained."""
        self.updates.append(update)

    def skip(self) -> None:
        """Append a stage at which the method trains nothing."""
        self.updates.append({})

    def reload_stage(self, folder: Path, method: Method, *, is_last: bool, is_adopted: bool = False) -> None:
        """Append what a stage trained earlier, read from its folder.

        is_last: whether no later stage exists. is_adopted: the adapter was made elsewhere, and may lack layers.

        Raises AdapterError for an adapter that lacks a layer, RunError for files that are not as they were written.
        """
        if is_last or method.trains == "adapter":  # otherwise nothing is read
            refuse_damaged_weights(folder)
        update = method.reload(self._model, folder, is_last=is_last)
        if update and not is_adopted and (lost := [name for name in self._names if name not in update]):
            more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
            raise AdapterError(
                f"{folder / ADAPTER}: lacks the update of {lost[0]}{more}; {to_repair(moved=folder)}"
            )
        self.updates.append(update)
        if is_last and not is_adopted:
            self.memory = load_memory(folder)

    def save_memory(self, folder: Path, memory: Memory, tasks: int | None = None) -> None:
        """Keep the method's memory, and save it in a folder. tasks: how many it is of, where no run's stage says so."""
        self.memory = memory
        if memory:
            _write_memory(folder, memory, tasks)

    # Which updates are active

    def activate_for_training(self, method: Method) -> None:
        """Activate the updates that the next stage trains on top of.

        Raises ModelError if the backbone is quantized and the method needs its weights.
        """
        if method.needs_float_weights and self._quantized:
            raise ModelError(
                f"{method.name} needs the backbone's weights as numbers, but they are quantized; "
                "load the model in float32 or bfloat16"
            )
        self._activate(method.active_in_training(self.updates))

    def activate_for_task(self, method: Method, index: int) -> None:
        """Activate the updates that answer task `index` (from 0)."""
        self._activate(method.answering(self.updates, index))

    def deactivate(self) -> None:
        """Leave the backbone without any update."""
        self._activate([])

    def _activate(self, updates: Sequence[AdapterState]) -> None:
        trained = [update for update in updates if update]
        if [id(update) for update in trained] != [id(update) for update in self._active]:
            self._holder.activate(trained)
            self._active = trained


def keep_updates(model: nn.Module, module_names: Sequence[str]) -> MergedUpdates | UnmergedUpdates:
    """Updates merged into the weights of these layers; if any of them cannot hold an update exactly, unmerged ones."""
    layers = [linear_layer(model, name) for name in module_names]
    can_merge = not is_sharded(model) and all(
        takes_updates(layer) and not shares_weight(model, layer) for layer in layers
    )
    return (MergedUpdates if can_merge else UnmergedUpdates)(model, module_names)


@by_main
def _write_memory(folder: Path, memory: Memory, tasks: int | None) -> None:
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in memory.items()}
    facts = None if tasks is None else {_TASKS: str(tasks)}
    (folder / MEMORY_FILE).write_bytes(safetensors.torch.save(tensors, facts))


def memory_tasks(folder: Path) -> int | None:
    """Of how many tasks a saved memory is; None without a file, or if it does not say."""
    path = folder / MEMORY_FILE
    if not path.is_file():
        return None
    with safetensors.safe_open(path, "pt") as file:
        found = (file.metadata() or {}).get(_TASKS, "")
    return int(found) if found.isdecimal() else None


def load_memory(folder: Path) -> Memory:
    """What a method kept at a stage; empty if there is no file. Raises RunError if the file is damaged."""
    path = folder / MEMORY_FILE
    if not path.is_file():
        return {}
    try:
        return safetensors.torch.load_file(path)
    except (OSError, SafetensorError) as error:
        raise unusable(path, error, moved=folder) from error
