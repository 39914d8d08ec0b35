"""Layers whose weights are trained in their least important directions, using PEFT's OSF tuner.

Source: arXiv 2504.07097. A layer's weight is decomposed by singular values. Its leading triples are frozen and the rest
is trained, with gradients projected off the frozen directions; the steps of AdamW are not (see `nlora.methods.osf`).
There is no low-rank update: the weights themselves change.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from nlora.config.schema import LoraOptions
from nlora.errors import AdapterError, ModelError, RunError, unusable
from nlora.models.inspection import recompute_activations, trained_parameters
from nlora.models.lora_factors import AdapterState
from nlora.models.target_modules import shares_weight, target_modules, target_names

WEIGHTS_FILE = "weights.safetensors"


class OsfLayers:
    """The target modules of a backbone, trained beside their leading directions. Create one with `attach`."""

    def __init__(self, model: Any, names: list[str]) -> None:
        self.model = model
        self._names = names
        self._checkpointing = False

    @classmethod
    def attach(cls, model: nn.Module, lora: LoraOptions, *, preserved: float) -> OsfLayers:
        """Freeze `model` except for the trailing singular directions of `lora.targets`.

        preserved: share of each layer's singular directions that stay frozen, in (0, 1).
        Raises ModelError for layers that PEFT's OSF does not support: GPT-2's Conv1D, quantized or shared ones.
        """
        from peft import OSFConfig, get_peft_model

        names = [shape.name for shape in target_modules(model, lora)]
        for name in names:
            layer = model.get_submodule(name)
            if type(layer) is not nn.Linear:
                raise ModelError(f"osf trains plain linear layers; {name} is a {type(layer).__name__}")
            if shares_weight(model, layer):
                raise ModelError(
                    f"osf trains layers with weights of their own; {name} shares its weight with another layer"
                )
        backbone: Any = model
        config = OSFConfig(
            task_type="SEQ_2_SEQ_LM" if backbone.config.is_encoder_decoder else "CAUSAL_LM",
            effective_rank=float(preserved),
            target_modules=target_names(model, lora),
        )
        return cls(get_peft_model(backbone, config), names)

    def factors(self) -> AdapterState:
        """Empty: there is no low-rank update."""
        return {}

    def state(self) -> AdapterState:
        """Empty: the trained weights stay in the backbone."""
        return {}

    def load_state(self, state: AdapterState) -> None:
        """Raises AdapterError: there are no factors."""
        raise AdapterError("osf trains the weights themselves and has no factors to load")

    def live_tensors(self) -> dict[str, Tensor]:
        """The parameters in training, and the directions that they are kept away from; see `Trainable`.

        The directions too, because another machine may decompose the weights differently.
        """
        directions = {name: tensor for name, tensor in self.model.named_buffers() if "._osf_" in name}
        return {**trained_parameters(self.model), **directions}

    @contextmanager
    def without(self) -> Iterator[None]:
        """A block in which the model is as it was before the stage, in evaluation mode."""
        training = self.model.training
        self.model.eval()
        try:
            with self.model.disable_adapter():
                yield
        finally:
            self.model.train(training)

    def commit(self, folder: Path, *, base_model: str, tokenizer: Any) -> None:
        """Write the layers' weights to folder/weights.safetensors, (out, in) by module name."""
        (folder / WEIGHTS_FILE).write_bytes(
            safetensors.torch.save(self._weights(), metadata={"format": "pt"})
        )

    @staticmethod
    def load(model: nn.Module, folder: Path) -> None:
        """Load a stage's weights into the model.

        Raises RunError if they are missing, damaged or those of another model.
        """
        path = folder / WEIGHTS_FILE
        try:
            tensors = safetensors.torch.load_file(path)
        except (OSError, SafetensorError) as error:
            raise unusable(path, error, moved=folder) from error
        for name, tensor in tensors.items():
            weight = model.get_submodule(name).weight
            if not isinstance(weight, nn.Parameter) or weight.shape != tensor.shape:
                raise RunError(f"{path}: {name} does not fit this model")
            with torch.no_grad():
                weight.copy_(tensor)

    def enable_checkpointing(self) -> None:
        """Recompute activations in the backward pass instead of keeping them; undone by `detach`."""
        recompute_activations(self.model.get_base_model(), on=True)
        self._checkpointing = True

    def detach(self) -> nn.Module:
        """Return the backbone, frozen, with its trained weights."""
        weights = self._weights()
        backbone: Any = self.model.unload()
        if self._checkpointing:
            recompute_activations(backbone, on=False)
            self._checkpointing = False
        with torch.no_grad():
            for name, weight in weights.items():
                backbone.get_submodule(name).weight.copy_(weight)
        backbone.requires_grad_(False)
        backbone.eval()
        model: nn.Module = backbone
        return model

    def _weights(self) -> dict[str, Tensor]:
        """W + U S V - U0 S0 V0 of every layer, on the CPU in the weight's own dtype."""
        backbone = self.model.get_base_model()
        weights = {}
        for name in self._names:
            layer = backbone.get_submodule(name)
            base = layer.get_base_layer().weight
            with torch.no_grad():
                moved = base.float() + layer.get_delta_weight("default").float()
            weights[name] = moved.to("cpu", base.dtype).contiguous()
        return weights
