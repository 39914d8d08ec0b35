"""Pure tensor functions with gradients in closed form; nothing here knows a model.

    from nlora.kernels import update_l1

    penalty = update_l1(A, B, scaling)           # Σ|scaling·B·A|, without ever storing B·A

The functions are looked up when they are used, so that importing this package does not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nlora.kernels.l1 import factor_l1, update_l1, update_l1_sum
    from nlora.kernels.orthogonal import frobenius_norm, row_overlap_l1, row_overlap_l2_squared
    from nlora.kernels.weighted_square import weighted_square_sum

__all__ = [
    "factor_l1",
    "frobenius_norm",
    "row_overlap_l1",
    "row_overlap_l2_squared",
    "update_l1",
    "update_l1_sum",
    "weighted_square_sum",
]

_MODULES = {
    "frobenius_norm": "orthogonal",
    "row_overlap_l1": "orthogonal",
    "row_overlap_l2_squared": "orthogonal",
    "weighted_square_sum": "weighted",
}


def __getattr__(name: str) -> Any:
    if name in __all__:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_MODULES.get(name, 'l1')}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
