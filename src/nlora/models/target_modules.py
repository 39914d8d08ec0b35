"""Which layers of a backbone are adapted: the query and value projections, unless the user names others.

Model families name these layers differently. They are recognized by the names of the model's own linear layers, so a
family need not be known in advance. Only layers that process text are adapted; an adapter in a tower for images or
sounds would never train.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from nlora.config.schema import ALL_LINEAR, LoraOptions
from nlora.errors import ModelError
from nlora.models.text_layers import is_linear, text_layers

# Query and value by the last part of their names; the first match counts. A single name is a layer that computes query,
# key and value together (GPT-2's c_attn), all of which are adapted.
QUERY_AND_VALUE: tuple[tuple[str, ...], ...] = (
    ("q_proj", "v_proj"),
    ("q_proj", "v_proj_current", "v_proj_delayed"),
    ("query", "value"),
    ("query_proj", "value_proj"),
    ("project_q", "project_v"),
    ("q", "v"),
    ("q_lin", "v_lin"),
    ("wq", "wv"),
    ("Wq", "Wv"),
    ("query_key_value",),
    ("c_attn",),
    ("qkv_proj",),
    ("Wqkv",),
    ("in_proj",),
    ("q_proj.linear", "v_proj.linear"),  # Inkling 2
)
# Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434): the layers that expand to the queries of all heads, and
# to their keys and values. Some layers of a model may have it and others not.
LATENT: tuple[tuple[str, ...], ...] = (
    ("q_b_proj", "kv_b_proj"),
    ("q_proj", "kv_b_proj"),
    ("q_gate_proj", "kv_b_proj"),  # AXK2
    ("self_attn.q_b_proj", "self_attn.kv_proj"),  # DeepSeek-V4
)

_WIDE = (torch.float64, torch.float32)
FLOATS = (*_WIDE, torch.bfloat16, torch.float16)


@dataclass(frozen=True, slots=True)
class ModuleShape:
    """A linear layer to adapt: its name in the backbone, the size of its weight, and the rank r of its updates."""

    name: str
    in_features: int
    out_features: int
    r: int

    @property
    def entries(self) -> int:
        """Number of entries of the weight."""
        return self.in_features * self.out_features


def target_modules(model: nn.Module, lora: LoraOptions) -> list[ModuleShape]:
    """The linear layers of a transformers model that `LoraAdapter.attach` would adapt, in the model's order.

    The model may be on the meta device, but must not have an adapter. Raises ModelError, with a list of the linear
    layers, if a target is unknown, is not a linear layer, does not process text, shares its weight with the embedding
    (merging an update would change the embedding, too), or has two names in the model (PEFT would adapt it under only
    one of them).

    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> target_modules(GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=1)), LoraOptions())
    [ModuleShape(name='transformer.h.0.attn.c_attn', in_features=8, out_features=24, r=8)]
    """
    embedding = cast(Any, model).get_input_embeddings()
    text = text_layers(model)
    every = list(model.named_modules(remove_duplicate=False))
    shapes = []
    for name in _targeted(model, lora):
        module = model.get_submodule(name)
        if not is_linear(module):
            raise ModelError(
                f"lora.targets: {name} is a {type(module).__name__}, not a linear layer; "
                f"the linear layers are {_listed(text)}"
            )
        if embedding is not None and module.weight is embedding.weight:
            raise ModelError(
                f"lora.targets: {name} shares its weight with the input embedding and cannot be adapted; "
                f"the other linear layers are {_listed(other for other in text if other != name)}"
            )
        names = [other for other, same in every if same is module]
        if len(names) > 1:
            raise ModelError(
                f"lora.targets: {name} is the same layer as {names[1]}; PEFT would adapt only one of the two; "
                f"the linear layers are {_listed(text)}"
            )
        shapes.append(ModuleShape(name, *in_and_out(module), lora.r))
    return shapes


def target_names(model: nn.Module, lora: LoraOptions) -> list[str]:
    """Target names for PEFT: the short ones, or the layers' full names if the short ones match other layers, too."""
    wanted = _targeted(model, lora)
    short = default_names(model) if lora.targets is None else list(lora.targets)
    everything = [name for name, _ in model.named_modules()]
    return short if [name for name in everything if _matches(name, short)] == wanted else wanted


def _targeted(model: nn.Module, lora: LoraOptions) -> list[str]:
    """The modules that `lora.targets` names, or the query and value projections, in the model's order."""
    text = text_layers(model)
    if lora.targets == (ALL_LINEAR,):
        head, taken = cast(Any, model).get_output_embeddings(), _taken_for_experts(model, text)
        return [name for name in text if model.get_submodule(name) is not head and _last(name) not in taken]
    if lora.targets is None:
        usual = default_names(model)
        return [name for name in text if _matches(name, usual)]
    if not lora.targets:
        raise ModelError(
            "lora.targets is an empty list; use null for the query and value projections, "
            f"or name some of the linear layers: {_listed(text)}"
        )
    everything = [name for name, _ in model.named_modules()]
    found = {target: [name for name in everything if _matches(name, [target])] for target in lora.targets}
    if unknown := [target for target, names in found.items() if not names]:
        near = difflib.get_close_matches(unknown[0], _last_parts(text), n=1)
        raise ModelError(
            f"lora.targets: {type(model).__name__} has no layer {', '.join(unknown)}; "
            + (f"did you mean '{near[0]}'? " if near else "")
            + f"its linear layers are {_listed(text)}"
        )
    silent = {name for name in everything if is_linear(model.get_submodule(name))} - set(text)
    for target, names in found.items():
        if silent.issuperset(names):
            raise ModelError(
                f"lora.targets: {target} of {type(model).__name__} does not process text, so it would not train; "
                f"the linear layers that do are {_listed(text)}"
            )
    wanted = [name for name in everything if _matches(name, lora.targets) and name not in silent]
    if taken := _taken_for_experts(model, wanted):
        raise ModelError(
            f"lora.targets: PEFT takes {', '.join(sorted(taken))} of {type(model).__name__} for layers of its experts, "
            f"which it cannot adapt; its linear layers are {_listed(n for n in text if _last(n) not in taken)}"
        )
    return wanted


def default_names(model: nn.Module) -> list[str]:
    """The query and value projections, by the ends of their names.

    Raises ModelError, with a list of the linear layers, if none are recognized.
    """
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

    text = text_layers(model)
    # PEFT knows a few families with unusual names, such as RWKV.
    peft = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(cast(Any, model).config.model_type)
    known = (*QUERY_AND_VALUE, *LATENT, *([tuple(peft)] if isinstance(peft, list) else []))
    there = [names for names in known if all(any(_matches(name, [end]) for name in text) for end in names)]
    if not there:
        raise ModelError(
            f"{type(model).__name__} has no layers known as query and value projections; "
            f"set lora.targets to some of its linear layers: {_listed(text)}"
        )
    latent = [name for names in there if names in LATENT for name in names]
    return list(dict.fromkeys([*there[0], *latent]))


def in_and_out(module: nn.Module) -> tuple[int, int]:
    """(in_features, out_features) of a linear layer."""
    if isinstance(module, Conv1D):
        return module.weight.shape[0], module.weight.shape[1]
    assert isinstance(module, nn.Linear)
    return module.in_features, module.out_features


def is_of_expert(name: str) -> bool:
    """Whether a layer belongs to one of several experts, which may all be left out of a step."""
    return "expert" in name


def is_quantized(layer: nn.Module) -> bool:
    """Whether a linear layer stores codes instead of the (out, in) numbers of its weight."""
    weight: Any = layer.weight
    plain = in_and_out(layer) if isinstance(layer, Conv1D) else in_and_out(layer)[::-1]
    return weight.dtype not in FLOATS or tuple(weight.shape) != plain


def takes_updates(layer: nn.Module) -> bool:
    """Whether a linear layer's weight is precise enough to hold small updates: 32 bits or more, not quantized."""
    return cast(Any, layer).weight.dtype in _WIDE and not is_quantized(layer)


def shares_weight(model: nn.Module, layer: nn.Module) -> bool:
    """Whether several layers share this layer's weight, as in Zamba2's blocks.

    Each of them has its own updates, which a single weight cannot hold.
    """
    return sum(module._parameters.get("weight") is layer.weight for module in model.modules()) > 1


def linear_layer(model: nn.Module, name: str) -> nn.Module:
    """The linear layer of that name, with or without an adapter. Raises ModelError if it is something else."""
    module = model.get_submodule(name)
    module = getattr(module, "base_layer", module)
    if not is_linear(module):
        raise ModelError(
            f"{name} is a {type(module).__name__}; updates can be merged into linear layers only"
        )
    return module


def _matches(name: str, targets: Sequence[str]) -> bool:
    """PEFT's rule: a target is a module's full name or its last parts."""
    return any(name == target or name.endswith(f".{target}") for target in targets)


def _taken_for_experts(model: nn.Module, names: Sequence[str]) -> set[str]:
    """The ends of layers' names that PEFT reads as those of experts, whose weights transformers 5 holds in one tensor.

    In a mixture of experts, the dense layers beside the experts (DeepSeek's shared ones) have these names, too.
    """
    from peft import LoraConfig
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    found = set()
    for end in _last_parts(names):
        config = LoraConfig(target_modules=[end])
        try:
            convert_peft_config_for_transformers(config, model=model, conversions=None)
        except ValueError:  # only with others that are in the same tensor
            found.add(end)
        if config.target_modules != {end}:
            found.add(end)
    return found


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _last_parts(names: Iterable[str]) -> Counter[str]:
    return Counter(map(_last, names))


def _listed(names: Iterable[str]) -> str:
    """Layers by the last part of their names.

    >>> _listed(["a.q_proj", "b.q_proj", "lm_head"])
    'q_proj (x2), lm_head'
    """
    return ", ".join(f"{part} (x{n})" if n > 1 else part for part, n in _last_parts(names).items())
