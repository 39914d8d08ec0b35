"""What a stage trains: a low-rank adapter, weights of the backbone itself, or soft prompts.

This is the interface that the trainer and the task sequence use. It is implemented by
`nlora.models.lora_adapter.LoraAdapter`, `nlora.models.full_model.FullModel`, `nlora.models.osf_layers.OsfLayers` and
`nlora.models.soft_prompts.SoftPrompts`.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor, nn

from nlora.models.lora_factors import AdapterState

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Trainable(Protocol):
    """Trainable parameters on a backbone. model: what the Trainer is given; parameters with `requires_grad` train."""

    model: Any

    def factors(self) -> AdapterState:
        """The live factors of a low-rank update; empty if something else is trained."""

    def load_state(self, state: AdapterState) -> None:
        """Continue training from these factors."""

    def state(self) -> AdapterState:
        """A copy of the factors, which later training does not change; empty if there are none."""

    def live_tensors(self) -> dict[str, Tensor]:
        """All tensors, by name, that differ from those of a freshly attached one once training has begun.

        They are not copies: to continue a training that was stopped, its tensors are written into them.
        """

    def without(self) -> AbstractContextManager[None]:
        """A block in which the model is as it was before the stage."""

    def commit(self, folder: Path, *, base_model: str, tokenizer: PreTrainedTokenizerBase) -> None:
        """Write what was trained into the stage's folder."""

    def enable_checkpointing(self) -> None:
        """Recompute activations in the backward pass instead of keeping them; undone by `detach`."""

    def detach(self) -> nn.Module:
        """Return the backbone, frozen: without the adapter, or with the trained weights or prompts."""
