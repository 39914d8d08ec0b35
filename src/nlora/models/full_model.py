"""Full fine-tuning: all parameters of a backbone are trained, instead of an adapter."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from torch import Tensor, nn

from nlora.errors import AdapterError, ModelError, RunError, to_repair, unusable
from nlora.models.backbone import quiet_bars
from nlora.models.inspection import recompute_activations, trained_parameters
from nlora.models.lora_factors import AdapterState

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MODEL = "model"
"""The subfolder of a stage's folder that holds its model."""


class FullModel:
    """All parameters of a backbone, ready to train. Create one with `attach`. model: the backbone itself."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self._checkpointing = False

    @classmethod
    def attach(cls, model: nn.Module) -> FullModel:
        """Make every parameter trainable. Raises ModelError if the backbone is quantized."""
        if quantized := next((n for n, p in model.named_parameters() if not p.is_floating_point()), None):
            raise ModelError(f"{quantized} is quantized and cannot be trained; load the model in float32")
        model.requires_grad_(True)
        return cls(model)

    def factors(self) -> AdapterState:
        """Empty: there is no low-rank update."""
        return {}

    def state(self) -> AdapterState:
        """Empty: the trained weights stay in the backbone."""
        return {}

    def load_state(self, state: AdapterState) -> None:
        """Raises AdapterError: there are no factors."""
        raise AdapterError("full fine-tuning has no factors to load")

    def live_tensors(self) -> dict[str, Tensor]:
        """The parameters in training, by name; see `Trainable`."""
        return dict(trained_parameters(self.model))

    @contextmanager
    def without(self) -> Iterator[None]:
        """Raises RunError: an adapter can be switched off, but trained weights cannot."""
        raise RunError(
            "the method needs the model as it was before the stage, which full fine-tuning does not keep"
        )
        yield

    def commit(self, folder: Path, *, base_model: str, tokenizer: PreTrainedTokenizerBase) -> None:
        """Write model and tokenizer to folder/model, which another run can use as its `model`."""
        with quiet_bars():
            self.model.save_pretrained(folder / MODEL)
        tokenizer.save_pretrained(folder / MODEL)

    @staticmethod
    def load(model: nn.Module, folder: Path) -> None:
        """Load a stage's weights into the model.

        Raises RunError if they are missing, damaged or those of another model.
        """
        from safetensors.torch import load_file

        files = sorted((folder / MODEL).glob("*.safetensors"))
        if not files:
            raise unusable(folder / MODEL, FileNotFoundError(), moved=folder)
        try:
            tensors = {key: tensor for file in files for key, tensor in load_file(file).items()}
        except (OSError, SafetensorError) as error:
            raise unusable(folder / MODEL, error, moved=folder) from error
        own = model.state_dict()
        if unknown := sorted(tensors.keys() - own.keys()):
            raise RunError(f"{folder / MODEL}: has {unknown[0]}, which the model does not have")
        saved = {own[name].data_ptr() for name in tensors}  # by address, because tied weights are saved once
        if lost := [name for name, tensor in own.items() if tensor.data_ptr() not in saved]:
            raise RunError(f"{folder / MODEL}: lacks {lost[0]}; {to_repair(moved=folder)}")
        model.load_state_dict(tensors, strict=False)

    def enable_checkpointing(self) -> None:
        """Recompute activations in the backward pass instead of keeping them; undone by `detach`."""
        recompute_activations(self.model, on=True)
        self._checkpointing = True

    def detach(self) -> nn.Module:
        """Freeze the backbone again, with its trained weights."""
        if self._checkpointing:
            recompute_activations(self.model, on=False)
            self._checkpointing = False
        self.model.requires_grad_(False)
        self.model.eval()
        model: nn.Module = self.model
        return model
