"""What trains at a stage: a low-rank adapter, or weights of the backbone itself.

`nlora.models.lora_adapter.LoraAdapter`, `nlora.models.full_model.FullModel` and `nlora.models.osf_layers.OsfLayers`
are learners; the sequence and the training know no more of them than this.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from torch import nn

from nlora.models.lora_factors import AdapterState

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Trainable(Protocol):
    """model: what the Trainer trains; its parameters that require a gradient are those that learn."""

    model: Any

    def factors(self) -> AdapterState:
        """The live factors of a low-rank update; empty where weights themselves move."""

    def load_state(self, state: AdapterState) -> None:
        """Go on from these factors."""

    def state(self) -> AdapterState:
        """A copy of the factors, which later training does not change."""

    def without(self) -> AbstractContextManager[None]:
        """The model as it was before the stage, while the block runs."""

    def commit(self, folder: Path, *, base_model: str, tokenizer: PreTrainedTokenizerBase) -> None:
        """Write what was trained into the stage's folder."""

    def enable_checkpointing(self) -> None:
        """Recompute activations in the backward pass instead of keeping them; undone by `detach`."""

    def detach(self) -> nn.Module:
        """Give the backbone back, frozen: without the adapter, or with the weights as they are now."""
