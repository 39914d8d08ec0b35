"""The linear layers of a model that process text: not those of its towers for images and sounds."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

# Parts of a decoder that attend to an encoder's output; unused in a model that is only a decoder.
_CROSS_ATTENTION = {"encoder_attn", "cross_attn", "crossattention", "cross_attention"}


def is_linear(module: nn.Module) -> bool:
    """Whether this is a linear layer, including bitsandbytes' and GPT-2's Conv1D, whose weight is transposed."""
    return isinstance(module, nn.Linear | Conv1D)


def text_layers(model: nn.Module) -> list[str]:
    """The names of the linear layers that process text, in the model's order.

    This excludes towers for images and sounds, the layers that connect these with the language model, and the
    cross-attention of a decoder without an encoder.
    """
    names = [name for name, module in model.named_modules() if is_linear(module)]
    if not isinstance(model, PreTrainedModel):
        return names
    encodes = bool(getattr(model.config, "is_encoder_decoder", False))
    towers = _towers(model)
    if towers or not _reads_text_alone(model):
        head = model.get_output_embeddings()
        inside = [model.get_decoder(), *([model.get_encoder()] if encodes else [])]
        names = [
            name
            for name in names
            if any(_within(name, _name_of(model, part)) for part in inside)
            or model.get_submodule(name) is head
        ]
        names = [name for name in names if not any(_within(name, tower) for tower in towers)]
    if not encodes:
        names = [name for name in names if not _CROSS_ATTENTION.intersection(name.split("."))]
    return names


def _towers(model: nn.Module) -> list[str]:
    """Parts of the model for images or sounds, each with its wrappers up to the next part that processes text."""
    parts = {name: part for name, part in model.named_modules() if isinstance(part, PreTrainedModel)}
    towers = []
    for name, part in parts.items():
        if "text" not in part.input_modalities:
            while (above := name.rpartition(".")[0]) and above not in parts:
                name = above
            towers.append(name)
    return towers


def _reads_text_alone(model: PreTrainedModel) -> bool:
    kinds = model.input_modalities
    return set([kinds] if isinstance(kinds, str) else kinds) == {"text"}


def _name_of(model: nn.Module, part: Any) -> str:
    return next((name for name, module in model.named_modules() if module is part), "")


def _within(name: str, part: str) -> bool:
    return not part or name == part or name.startswith(f"{part}.")
