"""Leaner ways through modules that stay what they are: PEFT's LoRA layers, and attention with rotary positions.

    forward = lean_forward(module)          # None where there is none
    module.forward = forward                # and `del module.forward` to undo it

A LoRA layer cannot be exchanged, because PEFT looks for its own class; attention differs between families of models
in all but the rotation. So the module keeps its class and its parts, and gets a forward of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn

from nlora.kernels.lora_linear import lora_linear
from nlora.kernels.rotary import rotate
from nlora.models.unmerged_updates import added_to

_ROTATION = "apply_rotary_pos_emb"
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2**-6}
"""Of the number formats known here, the largest difference to the original's output, of numbers around 1.

bfloat16 has 8 significant bits, of which the originals lose two by rounding in between.
"""
_MOST_DROPOUT = 0.999
"""More, to 1/65536, may be all of it, of which no multiple has the right mean."""


def lean_forward(module: nn.Module) -> Callable[..., Any] | None:
    """What may take the place of this module's forward: the same numbers, with less work on a CPU."""
    return _of_lora(module) if isinstance(module, LoraLinear) else _of_attention(module)


def _of_lora(layer: Any) -> Callable[..., Any] | None:
    """One plain adapter on a frozen `nn.Linear`; asked at each call, as adapters and earlier updates come and go."""
    base: Any = layer.base_layer
    formats = {p.dtype for p in base.parameters()}
    frozen = not any(p.requires_grad for p in base.parameters())
    if type(base) is not nn.Linear or not frozen or len(formats) != 1 or not formats <= TOLERANCES.keys():
        return None
    original = layer.forward

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        names = layer.active_adapters
        usual = not (args or kwargs or layer.disable_adapters or layer.merged) and len(names) == 1
        if not usual or names[0] not in layer.lora_A or names[0] in layer.lora_variant:
            return original(x, *args, **kwargs)
        a, b = layer.lora_A[names[0]], layer.lora_B[names[0]]
        added = added_to(base) if hooked(base) else ()
        if added is None or any(map(hooked, (a, b, layer.lora_dropout[names[0]]))):
            return original(x, *args, **kwargs)
        dropout = getattr(layer.lora_dropout[names[0]], "p", 0.0) if layer.training else 0.0
        known = x.dtype == base.weight.dtype and a.weight.dtype == torch.float32 and b.bias is None
        if not known or dropout > _MOST_DROPOUT:
            return original(x, *args, **kwargs)
        return lora_linear(
            x,
            base.weight,
            base.bias,
            a.weight,
            b.weight,
            scaling=layer.scaling[names[0]],
            dropout=dropout,
            added=added.matrices(x) if added else (),
        )

    return forward


def hooked(module: nn.Module) -> bool:
    """Whether somebody listens to this module, who would not hear what takes its place."""
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)


def _of_attention(module: nn.Module) -> Callable[..., Any] | None:
    """The module's own forward, which finds another function under the name of the rotation."""
    plain: Any = type(module).forward
    if not isinstance(plain, FunctionType) or _ROTATION not in plain.__code__.co_names:
        return None
    rotation = _leaner_rotation(plain.__globals__.get(_ROTATION))
    if rotation is None:
        return None
    names = {**plain.__globals__, _ROTATION: rotation}
    leaner = FunctionType(plain.__code__, names, plain.__name__, plain.__defaults__, plain.__closure__)
    leaner.__kwdefaults__ = plain.__kwdefaults__
    return leaner.__get__(module)


def _leaner_rotation(original: Any) -> Callable[..., Any] | None:
    """`rotate` where it gives what the original does; the original wherever it is called in another way."""
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
