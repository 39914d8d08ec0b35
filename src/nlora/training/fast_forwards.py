"""Faster ways through modules that keep their class: PEFT's LoRA layers, and attention with rotary positions.

A LoRA layer cannot be replaced, because PEFT looks for its own class, so it gets another forward. Attention differs
between model families except for the rotation, a function of the modeling file, so only that function is replaced.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn

from nlora.kernels.dropout import Dropout
from nlora.kernels.lora_linear import lora_linear
from nlora.kernels.rotary import rotate
from nlora.models.unmerged_updates import unmerged_updates_of

ROTATION = "apply_rotary_pos_emb"
"""What transformers calls the rotation in all of its modeling files."""
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2**-6}
"""The supported dtypes, with the largest accepted difference from the original's output, for numbers around 1.

bfloat16 has 8 significant bits, of which the originals lose two by rounding intermediate results.
"""
_MAX_DROPOUT = 0.999
"""Above this rate the rounded rate can be 1; nothing would be left to rescale."""


def lora_forward(layer: nn.Module) -> Callable[..., Any] | None:
    """A forward for a LoRA layer on a frozen `nn.Linear`; None for any other module.

    Each call checks whether it applies, because adapters and earlier updates come and go, and otherwise calls the
    original.
    """
    if not isinstance(layer, LoraLinear):
        return None
    base: Any = layer.base_layer
    dtypes = {p.dtype for p in base.parameters()}
    frozen = not any(p.requires_grad for p in base.parameters())
    if type(base) is not nn.Linear or not frozen or len(dtypes) != 1 or not dtypes <= TOLERANCES.keys():
        return None
    original = layer.forward

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        names = layer.active_adapters
        usual = not (args or kwargs or layer.disable_adapters or layer.merged) and len(names) == 1
        if not usual or names[0] not in layer.lora_A or names[0] in layer.lora_variant:
            return original(x, *args, **kwargs)
        a, b = layer.lora_A[names[0]], layer.lora_B[names[0]]
        base_hooked = hooked(base)
        earlier = unmerged_updates_of(base) if base_hooked else None
        if (base_hooked and earlier is None) or any(map(hooked, (a, b, layer.lora_dropout[names[0]]))):
            return original(x, *args, **kwargs)
        drop = layer.lora_dropout[names[0]]
        dropout = getattr(drop, "p", 0.0) if layer.training else 0.0
        known = x.dtype == base.weight.dtype and a.weight.dtype == torch.float32 and b.bias is None
        if not known or dropout > _MAX_DROPOUT:
            return original(x, *args, **kwargs)
        return lora_linear(
            x,
            base.weight,
            base.bias,
            a.weight,
            b.weight,
            scaling=layer.scaling[names[0]],
            dropout=dropout,
            streams=drop.streams(x) if isinstance(drop, Dropout) else None,
            added=earlier.matrices(x) if earlier else (),
        )

    return forward


def hooked(module: nn.Module) -> bool:
    """Whether hooks are registered on this module; a replacement would not call them."""
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)


def modeling_file(module: nn.Module) -> dict[str, Any] | None:
    """The global names of the file that defines a module's forward; None if that does not call a rotation."""
    forward: Any = inspect.unwrap(type(module).forward)  # transformers 5.24 has wrapped many of them
    if isinstance(forward, FunctionType) and ROTATION in forward.__code__.co_names:
        return forward.__globals__
    return None


def fast_rotation(original: Any) -> Callable[..., Any] | None:
    """A replacement for a modeling file's rotation; None if `rotate` does not give the same numbers.

    Calls of another form, which some models make, go to the original.
    """
    draw = torch.Generator().manual_seed(0)
    q, k, angles = (torch.randn(size, generator=draw) for size in ((2, 3, 5, 8), (2, 1, 5, 8), (2, 5, 4)))
    cos, sin = (torch.cat([part, part], dim=-1) for part in (angles.cos(), angles.sin()))
    try:
        pairs = zip(original(q, k, cos, sin), rotate(q, k, cos, sin), strict=True)
        tolerance = TOLERANCES[torch.float32]
        same = all(torch.allclose(a, b, rtol=tolerance, atol=tolerance) for a, b in pairs)
    except (AttributeError, RuntimeError, TypeError, ValueError):
        return None

    def rotation(*args: Any, **kwargs: Any) -> Any:
        if kwargs or len(args) != 4:
            return original(*args, **kwargs)
        q, _, cos, _ = args
        known = q.dtype == cos.dtype in TOLERANCES and cos.shape[-1] == q.shape[-1] and cos.dim() == 3
        return rotate(*args) if known else original(*args)

    return rotation if same else None
