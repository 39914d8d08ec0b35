"""What a host program may have set in torch: the dtype of new tensors, autocast, no_grad and inference mode."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from nlora.errors import ModelError


def require_float32() -> None:
    """Raise ModelError unless torch's default dtype is float32.

    With another one a seed would draw another adapter, and tensors that are made here would not fit.
    """
    import torch

    if (found := torch.get_default_dtype()) != torch.float32:
        raise ModelError(
            f"torch's default dtype is {found}, in which the same seed draws another adapter; call "
            "torch.set_default_dtype(torch.float32) first (the model's own is the key dtype, or from_pretrained's)"
        )


@contextmanager
def own_modes() -> Iterator[None]:
    """A block in which the host's autocast, no_grad and inference mode do not count."""
    with ExitStack() as modes:
        if "torch" in sys.modules:  # otherwise nobody can have set any
            import torch

            modes.enter_context(torch.inference_mode(False))
            modes.enter_context(torch.enable_grad())
            for device in ("cpu", "cuda"):
                if torch.is_autocast_enabled(device):
                    modes.enter_context(torch.autocast(device, enabled=False))
        yield
