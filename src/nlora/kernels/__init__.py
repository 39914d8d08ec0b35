"""Pure tensor functions with gradients in closed form; nothing here knows a model.

    from nlora.kernels import update_l1

    penalty = update_l1(A, B, scaling)           # Σ|scaling·B·A|, without ever storing B·A

The functions are looked up when they are used, so that importing this package does not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nlora.kernels.l1 import factor_l1, update_l1, update_l1_sum

__all__ = ["factor_l1", "update_l1", "update_l1_sum"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from nlora.kernels import l1

        return getattr(l1, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
