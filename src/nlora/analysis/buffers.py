"""Memory to write into, kept from one module to the next.

    scratch = Scratch()
    flags = scratch.array("flags", (15, 1024), np.bool_)    # what was left there is still in it

New arrays of some megabytes are new pages of memory each time, and threads that take and give back pages wait for one
another: with new ones for every module, two threads were slower than one.
"""

from __future__ import annotations

import math
import threading
from typing import Any

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from torch import Tensor


class Scratch(threading.local):
    """Arrays by name; every thread has its own, so one scratch may be shared."""

    def __init__(self) -> None:
        self._kept: dict[str, NDArray[np.uint8]] = {}

    def array(self, name: str, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """An array whose contents are arbitrary, valid until the same name is asked for again."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        kept = self._kept.get(name)
        if kept is None or len(kept) < size:
            # torch's memory begins at a cache line, numpy's often in the middle of one.
            kept = self._kept[name] = torch.empty(size, dtype=torch.uint8).numpy()
        return kept[:size].view(dtype).reshape(shape)

    def tensor(self, name: str, shape: tuple[int, ...], dtype: DTypeLike) -> Tensor:
        """The same as a tensor on the CPU."""
        return torch.from_numpy(self.array(name, shape, dtype))
