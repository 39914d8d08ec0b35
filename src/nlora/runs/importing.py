"""Faster imports of torch, transformers and PEFT."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """A block of imports, without garbage collection: it would take a sixth of their time, and find nothing.

    They make half a million objects that stay, and Python would go through all of them again and again.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        # Otherwise the host has frozen objects of its own, and they have to stay so.
        if gc.get_freeze_count() == 0:
            gc.freeze()
            gc.unfreeze()  # into the oldest generation, which is gone through last
        gc.enable()
