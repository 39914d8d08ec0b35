"""The dtype in which torch makes new tensors, which a host may have changed for its whole process."""

from __future__ import annotations

from nlora.errors import ModelError


def require_float32() -> None:
    """Raise ModelError unless it is float32: a seed would draw another adapter, and tensors made here would not fit."""
    import torch

    if (found := torch.get_default_dtype()) != torch.float32:
        raise ModelError(
            f"torch's default dtype is {found}, in which the same seed draws another adapter; call "
            "torch.set_default_dtype(torch.float32) first (the model's own is the key dtype, or from_pretrained's)"
        )
