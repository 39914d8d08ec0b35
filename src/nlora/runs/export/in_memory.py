"""A backbone whose update can be exchanged: the model that an export should equal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from nlora.errors import ModelError
from nlora.models.backbone import Backbone
from nlora.models.lora_factors import LoraFactors
from nlora.models.target_modules import linear_layer, shares_weight, takes_updates
from nlora.runs.export.combine import Update, dense_update
from nlora.runs.update_history import keep_updates


class UpdatedBackbone:
    """A bare backbone with one update at a time. backbone: in float32, or quantized. names: the updated modules."""

    def __init__(self, backbone: Backbone, names: Sequence[str]) -> None:
        self.backbone = backbone
        self._holder = keep_updates(backbone.model, names)
        self._layers = {name: linear_layer(backbone.model, name) for name in names}
        self._originals: dict[str, Tensor] = {}

    @property
    def takes_updates(self) -> bool:
        """Whether the weights can hold an update: they are not quantized, and no two layers share one."""
        model = self.backbone.model
        return all(takes_updates(m) and not shares_weight(model, m) for m in self._layers.values())

    def set(self, update: Mapping[str, Update]) -> None:
        """Replace the update. Raises ModelError for a dense one if the weights cannot hold it."""
        found = {name: update[name] for name in update}
        if all(isinstance(one, LoraFactors) for one in found.values()):
            self._set_dense({})
            self._holder.activate([cast(dict[str, LoraFactors], found)])
        else:
            if not self.takes_updates:
                raise ModelError(
                    "the backbone's weights are quantized or shared by several layers, so an update of single "
                    "entries cannot be merged into them; use --merge sum"
                )
            self._holder.deactivate()
            self._set_dense(found)

    @torch.no_grad()
    def _set_dense(self, found: Mapping[str, Update]) -> None:
        if found and not self._originals:
            self._originals = {name: _weight(m).to("cpu", copy=True) for name, m in self._layers.items()}
        for name, original in self._originals.items():
            layer = self._layers[name]
            weight = _weight(layer)
            weight.copy_(original)
            if name in found:
                weight.add_(as_stored(layer, dense_update(found[name])).to(weight.device))


def as_stored(layer: nn.Module, update: Tensor) -> Tensor:
    """ΔW (out, in) as the layer stores its weight: Conv1D has (in, out)."""
    return update if isinstance(layer, nn.Linear) else update.mT


def _weight(layer: Any) -> Tensor:
    weight: Tensor = layer.weight
    return weight.detach()
