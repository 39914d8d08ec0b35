"""What a model has learned so far: the update of every stage, and which of them are in the backbone now.

    learned = UpdateHistory(backbone.model, ["model.layers.0.self_attn.q_proj"])
    learned.reload_stage(folder, method, last=True)     # from the folder of a committed stage
    learned.activate_for_training(method)                       # the backbone as the next stage's training finds it
    learned.activate_for_task(method, index=0)                # the backbone that answers the first task

A method may keep more than its updates from stage to stage (`Method.end_task`): that is `memory`, saved with the stage.
Only the last stage's is ever needed, so that of the stage before is removed once the next is committed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError
from torch import nn

from nlora.errors import AdapterError, ModelError, RunError
from nlora.methods.base import Memory, Method
from nlora.models.lora_adapter import ADAPTER
from nlora.models.lora_factors import AdapterState
from nlora.models.merged_updates import MergedUpdates
from nlora.models.target_modules import is_quantized, linear_layer, shares_weight, takes_updates
from nlora.models.unmerged_updates import UnmergedUpdates

MEMORY_FILE = "memory.safetensors"


class UpdateHistory:
    """The updates so far, in order; `memory`: what the method kept at the last stage."""

    def __init__(self, model: nn.Module, module_names: Sequence[str]) -> None:
        self.updates: list[AdapterState] = []
        self.memory: Memory = {}
        self._model, self._names = model, list(module_names)
        self._folded = keep_updates(model, module_names)
        self._quantized = any(is_quantized(linear_layer(model, name)) for name in module_names)
        self._inside: list[AdapterState] = []

    @property
    def is_in_weights(self) -> bool:
        """Whether updates are put into the backbone's own weights, not beside them."""
        return isinstance(self._folded, MergedUpdates)

    def reload_stage(self, folder: Path, method: Method, *, last: bool, passed_over: bool = False) -> None:
        """Take back what a stage trained, from its folder. last: whether nothing is trained after it.

        Raises AdapterError for an adapter that lacks a layer.
        """
        state = {} if passed_over else method.reload(self._model, folder, is_last=last)
        if state and (lost := [name for name in self._names if name not in state]):
            more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
            raise AdapterError(
                f"{folder / ADAPTER}: lacks the update of {lost[0]}{more}; put the file back, or delete {folder} and "
                "later stages to train them again"
            )
        self.updates.append(state)
        if last:
            self.memory = load_memory(folder)

    def activate_for_training(self, method: Method) -> None:
        """Put those updates into the backbone that are in it while the next stage trains.

        Raises ModelError where the backbone is quantized and the method needs its weights.
        """
        if method.needs_float_weights and self._quantized:
            raise ModelError(
                f"{method.name} needs the backbone's weights as numbers, and they are quantized; "
                "load the model in float32 or bfloat16"
            )
        self._fold(method.active_in_training(self.updates))

    def activate_for_task(self, method: Method, index: int) -> None:
        """Put those updates into the backbone that answer task `index`, from 0."""
        self._fold(method.active_for(self.updates, index))

    def save_memory(self, folder: Path, memory: Memory) -> None:
        """Keep the method's memory, and save it into its stage's folder."""
        self.memory = memory
        if memory:
            tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in memory.items()}
            (folder / MEMORY_FILE).write_bytes(safetensors.torch.save(tensors))

    def _fold(self, states: Sequence[AdapterState]) -> None:
        full = [state for state in states if state]
        if [id(state) for state in full] != [id(state) for state in self._inside]:
            self._folded.activate(full)
            self._inside = full


def keep_updates(model: nn.Module, module_names: Sequence[str]) -> MergedUpdates | UnmergedUpdates:
    """Folds updates into the weights where these can hold them; else beside the weights: see `nlora.models.unmerged_updates`."""
    layers = [linear_layer(model, name) for name in module_names]
    folds = all(takes_updates(layer) and not shares_weight(model, layer) for layer in layers)
    return (MergedUpdates if folds else UnmergedUpdates)(model, module_names)


def load_memory(folder: Path) -> Memory:
    """What a method kept at a stage; nothing where there is no file. Raises RunError where it is damaged."""
    path = folder / MEMORY_FILE
    if not path.is_file():
        return {}
    try:
        return safetensors.torch.load_file(path)
    except (OSError, SafetensorError) as error:
        raise RunError(f"{path}: damaged ({error}); delete {folder} to train the stage again") from error
