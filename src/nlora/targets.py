"""Which layers of a backbone are adapted: the query and value projections unless the user names others.

    target_modules(model, LoraOptions())     # [ModuleShape("model.layers.0.self_attn.q_proj", 576, 576), ...]

The families of transformers name these layers differently; they are recognised by the names of the model's
own linear layers, so that a family does not have to be known in advance.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from nlora.config import LoraOptions
from nlora.errors import ModelError

# Query and value by the last part of their names, in the order in which they are looked for. One name: the
# layer computes query, key and value together (GPT-2's c_attn), and all three are adapted.
QUERY_AND_VALUE: tuple[tuple[str, ...], ...] = (
    ("q_proj", "v_proj"),
    ("query", "value"),
    ("query_proj", "value_proj"),
    ("q", "v"),
    ("q_lin", "v_lin"),
    ("wq", "wv"),
    ("query_key_value",),
    ("c_attn",),
    ("qkv_proj",),
    ("Wqkv",),
    ("in_proj",),
)

_WIDE = (torch.float64, torch.float32)
FLOATS = (*_WIDE, torch.bfloat16, torch.float16)


@dataclass(frozen=True, slots=True)
class ModuleShape:
    """A linear layer that is adapted: its name in the backbone and the sizes of its weight."""

    name: str
    in_features: int
    out_features: int


def target_modules(model: nn.Module, lora: LoraOptions) -> list[ModuleShape]:
    """The linear layers of a transformers model that `Adapter.attach` would adapt, in the model's order.

    The model may be without its weights (on the meta device), but must be without an adapter.
    Raises ModelError that lists the linear layers there are, where a target is unknown, is no linear layer,
    or shares its weight with the embedding (folding an update in would change the embedding too).
    """
    targets = target_names(model, lora)
    embedding = cast(Any, model).get_input_embeddings()
    shapes = []
    for name, module in model.named_modules():
        if not _matches(name, targets):
            continue
        if not is_linear(module):
            raise ModelError(
                f"lora.targets: {name} is a {type(module).__name__}, not a linear layer; "
                f"the linear layers are {_listed(model)}"
            )
        if embedding is not None and module.weight is embedding.weight:
            raise ModelError(
                f"lora.targets: {name} shares its weight with the input embedding and cannot be adapted; "
                f"the other linear layers are {_listed(model, without=name)}"
            )
        shapes.append(ModuleShape(name, *in_and_out(module)))
    return shapes


def target_names(model: nn.Module, lora: LoraOptions) -> list[str]:
    """The names to match: `lora.targets`, checked, or the family's query and value projections."""
    names = [name for name, module in model.named_modules() if is_linear(module)]
    if lora.targets is None:
        for pair in QUERY_AND_VALUE:
            if all(any(_matches(name, [part]) for name in names) for part in pair):
                return list(pair)
        raise ModelError(
            f"{type(model).__name__} has no layers known as query and value projections; "
            f"set lora.targets to some of its linear layers: {_listed(model)}"
        )
    if not lora.targets:
        raise ModelError(
            "lora.targets is an empty list; use null for the query and value projections, "
            f"or name some of the linear layers: {_listed(model)}"
        )
    everything = [name for name, _ in model.named_modules()]
    unknown = [t for t in lora.targets if not any(_matches(name, [t]) for name in everything)]
    if unknown:
        near = difflib.get_close_matches(unknown[0], _last_parts(names), n=1)
        raise ModelError(
            f"lora.targets: {type(model).__name__} has no layer {', '.join(unknown)}; "
            + (f"did you mean '{near[0]}'? " if near else "")
            + f"its linear layers are {_listed(model)}"
        )
    return list(lora.targets)


def is_linear(module: nn.Module) -> bool:
    """A linear layer, bitsandbytes' quantised ones and GPT-2's Conv1D (its weight is stored transposed) included."""
    return isinstance(module, nn.Linear | Conv1D)


def in_and_out(module: nn.Module) -> tuple[int, int]:
    """(in_features, out_features) of a linear layer."""
    if isinstance(module, Conv1D):
        return module.weight.shape[0], module.weight.shape[1]
    assert isinstance(module, nn.Linear)
    return module.in_features, module.out_features


def is_quantised(layer: nn.Module) -> bool:
    """Whether the weight of a linear layer is not its (out, in) numbers, but a code for them."""
    weight: Any = layer.weight
    plain = in_and_out(layer) if isinstance(layer, Conv1D) else in_and_out(layer)[::-1]
    return weight.dtype not in FLOATS or tuple(weight.shape) != plain


def takes_updates(layer: nn.Module) -> bool:
    """Whether the weight of a linear layer has room for small updates: numbers of 32 bits or more."""
    return cast(Any, layer).weight.dtype in _WIDE and not is_quantised(layer)


def linear_layer(model: nn.Module, name: str) -> nn.Module:
    """The linear layer of that name, whether an adapter wraps it or not. Raises ModelError where it is none."""
    module = model.get_submodule(name)
    module = getattr(module, "base_layer", module)
    if not is_linear(module):
        raise ModelError(
            f"{name} is a {type(module).__name__}; updates can be folded into linear layers only"
        )
    return module


def _matches(name: str, targets: Sequence[str]) -> bool:
    """PEFT's rule: a target is a module's whole name or its last parts."""
    return any(name == target or name.endswith(f".{target}") for target in targets)


def _last_parts(names: Sequence[str]) -> Counter[str]:
    return Counter(name.rpartition(".")[2] for name in names)


def _listed(model: nn.Module, without: str = "") -> str:
    """`q_proj (x2), lm_head`: the linear layers by the last part of their names."""
    names = [name for name, module in model.named_modules() if is_linear(module) and name != without]
    return ", ".join(f"{part} (x{n})" if n > 1 else part for part, n in _last_parts(names).items())
