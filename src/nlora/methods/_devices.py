"""What a method holds follows its model: someone may move the model after the method has begun (`nlora.next_task`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def beside(held: dict[str, Tensor], name: str, factor: Tensor) -> Tensor:
    """`held[name]` on the factor's device, where it stays from then on."""
    if held[name].device != factor.device:
        held[name] = held[name].to(factor.device)
    return held[name]
