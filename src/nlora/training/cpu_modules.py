"""Parts of a frozen backbone exchanged, while an adapter trains on it, for leaner ones that compute the same.

    undo = lean(model)
    train(model)
    undo()                            # every module as it was

On a CPU, a fifth of a training step goes into dropout's masks, norms and gated layers, and a third of its
memory into what they keep for the backward pass (docs/performance.md). The exchanged modules hold the same
parameters under the same names. A norm or a gated layer is exchanged only if a try on random numbers gives the
original's output, whether these are small or large, so a model that computes something else under a like name stays as
it is; so does everything on other devices than a CPU, where nothing of this has been measured.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from nlora.kernels.dropout import Dropout
from nlora.kernels.elementwise import rms_norm, silu_mul
from nlora.training.cpu_forwards import TOLERANCES, hooked, lean_forward

_SIZES = (1e-3, 1.0, 30.0, 1000.0)
"""Of the numbers of a try: small ones show a norm's eps, large ones a clamp (DeepSeek-V4's gates end at 10)."""


class RmsNorm(nn.Module):
    """weight·x/√(mean(x²) + eps) for a frozen weight; inputs of another number format are left to the original."""

    def __init__(self, original: Any) -> None:
        super().__init__()
        self.weight = original.weight
        self._eps = float(getattr(original, "variance_epsilon", getattr(original, "eps", 0.0)))
        self._original = (original,)  # in a tuple: not a part of this module

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


def lean(model: nn.Module) -> Callable[[], None]:
    """Exchanges what can be exchanged inside the model; returns what puts the original modules back."""
    exchanged: list[tuple[nn.Module, str, nn.Module]] = []
    shortened: list[nn.Module] = []
    if all(p.device.type == "cpu" for p in model.parameters()):
        for parent in list(model.modules()):
            for name, child in parent.named_children():
                leaner = _leaner(child)
                if leaner is not None:
                    exchanged.append((parent, name, child))
                    setattr(parent, name, leaner.train(child.training))
            forward = None if "forward" in vars(parent) else lean_forward(parent)
            if forward is not None:
                shortened.append(parent)
                parent.forward = forward

    def undo() -> None:
        for module in shortened:
            del module.forward
        for parent, name, original in reversed(exchanged):
            original.train(getattr(parent, name).training)
            setattr(parent, name, original)

    return undo


def _leaner(module: Any) -> nn.Module | None:
    if type(module) is nn.Dropout:
        return Dropout(module.p) if module.p and not module.inplace else None
    if hooked(module):
        return None
    weight = getattr(module, "weight", None)
    if type(module).__name__.endswith(("RMSNorm", "LayerNorm")) and isinstance(weight, nn.Parameter):
        frozen = len(list(module.parameters())) == 1 and weight.dim() == 1 and not weight.requires_grad
        return _if_equal(RmsNorm, module, len(weight)) if frozen else None
    parts = {"gate_proj", "up_proj", "down_proj", "act_fn"}
    if {name for name, _ in module.named_children()} == parts:
        return _if_equal(GatedLayer, module, _in_features(module.gate_proj))
    return None


def _if_equal(kind: Callable[[Any], nn.Module], original: nn.Module, width: int) -> nn.Module | None:
    """The leaner module if it gives the original's output on a few random rows of each size."""
    formats = {p.dtype for p in original.parameters() if not p.requires_grad}
    if len(formats) != 1 or not formats <= TOLERANCES.keys():
        return None
    (dtype,) = formats
    x = torch.randn(3, width, generator=torch.Generator().manual_seed(0)).to(dtype)
    training = original.training
    original.eval()
    try:
        leaner = kind(original)
        with torch.no_grad():
            rows = torch.cat([x * size for size in _SIZES])  # in one pass: each reads the module's weights
            pairs = zip(leaner(rows).split(len(x)), original(rows).split(len(x)), strict=True)
            same = all(_agree(found, expected) for found, expected in pairs)
    except (AttributeError, RuntimeError, TypeError, ValueError):  # it wants to be called in another way
        return None
    finally:
        original.train(training)
    return leaner if same else None


def _agree(found: Tensor, expected: Tensor) -> bool:
    """Whether they differ by no more than rounding, of the largest number."""
    tolerance = TOLERANCES[expected.dtype] * float(expected.abs().max())
    return torch.allclose(found, expected, rtol=TOLERANCES[expected.dtype], atol=tolerance)


def _in_features(layer: Any) -> int:
    return int(getattr(layer, "base_layer", layer).in_features)
