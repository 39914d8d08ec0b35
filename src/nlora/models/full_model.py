"""Full fine-tuning: all parameters of a backbone are trained, instead of an adapter."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from safetensors import SafetensorError
from torch import Tensor, nn

from nlora.errors import AdapterError, ModelError, RunError, to_repair, unusable
from nlora.models.inspection import recompute_activations, trained_parameters
from nlora.models.lora_factors import AdapterState
from nlora.models.quiet_bars import quiet_bars

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
        where, kind = folder / MODEL, cast(Any, type(model))
        if not any(where.glob("*.safetensors")):
            raise unusable(where, FileNotFoundError(), moved=folder)
        try:
            # By transformers, which writes many families' weights under other names and in other shapes than they have.
            with quiet_bars():
                saved, found = kind.from_pretrained(
                    where, config=model.config, dtype=model.dtype,
                    output_loading_info=True, ignore_mismatched_sizes=True,
                )  # fmt: skip
        except (OSError, RuntimeError, ValueError, SafetensorError) as error:
            raise unusable(where, error, moved=folder) from error
        wrong = {
            "lacks": found["missing_keys"],
            "has unknown": found["unexpected_keys"],
            "has another shape of": {name for name, *_ in found["mismatched_keys"]},
        }
        for what, names in wrong.items():
            if names:
                raise RunError(f"{where}: {what} {min(names)}; {to_repair(moved=folder)}")
        model.load_state_dict(saved.state_dict())

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
