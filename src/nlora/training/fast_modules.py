"""Faster modules for a frozen backbone while an adapter trains on it.

On a CPU, a fifth of a training step goes into dropout masks, norms and gated layers, and a third of its memory into
what these store for the backward pass (docs/performance.md). A GPU starts fewer operations with them, and stores less
(docs/gpu.md). The replacements hold the same parameters under the same names. A norm or a gated layer is replaced only
if a trial on small and large random numbers gives the original's output, so a module that computes something else under
a similar name stays.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from nlora.kernels.dropout import Dropout
from nlora.kernels.elementwise import rms_norm, silu_mul
from nlora.training.fast_forwards import (
    ROTATION,
    TOLERANCES,
    fast_rotation,
    hooked,
    lora_forward,
    modeling_file,
)
from nlora.training.keyed_masks import KeyedMasks, update_dropouts

DEVICES = ("cpu", "cuda")
"""Types of devices on which the replacements are right, tried on both."""
_SIZES = (1e-3, 1.0, 30.0, 1000.0)
"""Scales of the trial's numbers: small ones reveal a norm's eps, large ones a clamp (DeepSeek-V4's gates end at 10)."""


class RmsNorm(nn.Module):
    """weight·x/√(mean(x²) + eps) for a frozen weight; inputs of another dtype go to the original module."""

    def __init__(self, original: Any) -> None:
        super().__init__()
        self.weight = original.weight
        self._eps = float(getattr(original, "variance_epsilon", getattr(original, "eps", 0.0)))
        self._original = (original,)  # in a tuple, so that it is not a submodule

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(..., n) -> (..., n)."""
        if hidden_states.dtype != self.weight.dtype:
            return self._original[0](hidden_states)  # type: ignore[no-any-return]
        return rms_norm(hidden_states, self.weight, self._eps)


class GatedLayer(nn.Module):
    """down(silu(gate(x))·up(x)), LLaMA's feed-forward layer."""

    def __init__(self, original: Any) -> None:
        super().__init__()
        self.gate_proj = original.gate_proj
        self.up_proj = original.up_proj
        self.down_proj = original.down_proj

    def forward(self, x: Tensor) -> Tensor:
        """(..., n) -> (..., n)."""
        return self.down_proj(silu_mul(self.gate_proj(x), self.up_proj(x)))  # type: ignore[no-any-return]


@contextmanager
def fast_modules(
    model: nn.Module,
    devices: Collection[str] = DEVICES,
    *,
    tries: bool = True,
    masks: KeyedMasks | None = None,
) -> Iterator[None]:
    """A block in which the model computes the same numbers, up to rounding, with less work.

    devices: the types of devices for which this holds; a model with a parameter elsewhere stays as it is.
    tries: False replaces modules by their names alone, on a skeleton whose memory is estimated.
    masks: of the dropout on the inputs of updates; None: from torch's generator, as of other dropout.

    >>> model = nn.Sequential(nn.Dropout(0.1))
    >>> with fast_modules(model):
    ...     type(model[0]) is Dropout
    True
    >>> type(model[0]) is nn.Dropout
    True
    """
    with ExitStack() as undo:
        if all(p.device.type in devices for p in model.parameters()):
            numbers = {} if masks is None else update_dropouts(model)
            for parent in list(model.modules()):
                for name, child in parent.named_children():
                    new = _replacement(child, tries)
                    if masks is not None and child in numbers and isinstance(new, Dropout):
                        new = Dropout(new.p, partial(masks.streams, numbers[child]))
                    if new is not None:
                        _replace(parent, name, child, new, undo)
                if "forward" not in vars(parent):  # nobody else has replaced it
                    _replace_forward(parent, undo)
                _replace_rotation(parent, undo)
        yield


def _replace(
    parent: nn.Module, name: str, original: nn.Module, replacement: nn.Module, undo: ExitStack
) -> None:
    def put_back() -> None:
        original.train(replacement.training)
        setattr(parent, name, original)

    setattr(parent, name, replacement.train(original.training))
    undo.callback(put_back)


def _replace_forward(module: nn.Module, undo: ExitStack) -> None:
    forward = lora_forward(module)
    if forward is not None:
        module.forward = forward
        undo.callback(delattr, module, "forward")


def _replace_rotation(module: nn.Module, undo: ExitStack) -> None:
    names = modeling_file(module)
    original = None if names is None else names.get(ROTATION)
    if (
        names is None or original is None or original.__module__ == fast_rotation.__module__
    ):  # replaced already
        return
    rotation = fast_rotation(original)
    if rotation is not None:
        names[ROTATION] = rotation
        undo.callback(names.__setitem__, ROTATION, original)


def _replacement(module: Any, tries: bool) -> nn.Module | None:
    if type(module) is nn.Dropout:
        return Dropout(module.p) if module.p and not module.inplace else None
    if hooked(module):
        return None
    weight = getattr(module, "weight", None)
    if type(module).__name__.endswith(("RMSNorm", "LayerNorm")) and isinstance(weight, nn.Parameter):
        frozen = len(list(module.parameters())) == 1 and weight.dim() == 1 and not weight.requires_grad
        if not frozen:
            return None
        return _if_equal(RmsNorm, module, len(weight)) if tries else RmsNorm(module)
    parts = {"gate_proj", "up_proj", "down_proj", "act_fn"}
    if {name for name, _ in module.named_children()} == parts:
        width = _in_features(module.gate_proj)
        return _if_equal(GatedLayer, module, width) if tries else GatedLayer(module)
    return None


def _if_equal(kind: Callable[[Any], nn.Module], original: nn.Module, width: int) -> nn.Module | None:
    """The replacement, if it gives the original's output on a few random rows of each size."""
    places = {(p.dtype, p.device) for p in original.parameters() if not p.requires_grad}
    if len(places) != 1:
        return None
    ((dtype, device),) = places
    if dtype not in TOLERANCES:
        return None
    x = torch.randn(3, width, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    training = original.training
    original.eval()
    try:
        replacement = kind(original)
        with torch.no_grad():
            rows = torch.cat([x * size for size in _SIZES])  # one pass, since each reads the module's weights
            pairs = zip(replacement(rows).split(len(x)), original(rows).split(len(x)), strict=True)
            same = all(_agree(found, expected) for found, expected in pairs)
    except (AttributeError, RuntimeError, TypeError, ValueError):  # it takes other arguments
        return None
    finally:
        original.train(training)
    return replacement if same else None


def _agree(found: Tensor, expected: Tensor) -> bool:
    """Whether they differ only by rounding, relative to the largest number."""
    tolerance = TOLERANCES[expected.dtype] * float(expected.abs().max())
    return torch.allclose(found, expected, rtol=TOLERANCES[expected.dtype], atol=tolerance)


def _in_features(layer: Any) -> int:
    return int(getattr(layer, "base_layer", layer).in_features)
