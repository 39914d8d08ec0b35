"""Arrays that are reused from one module to the next.

Each new array of some megabytes maps new pages of memory, and threads that map and unmap pages wait for one another:
with new arrays for every module, two threads were slower than one.
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
    """Arrays by name. Every thread has its own, so threads may share one instance."""

    def __init__(self) -> None:
        self._kept: dict[str, NDArray[np.uint8]] = {}

    def array(self, name: str, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """An uninitialized array, valid until the next call with the same name."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        kept = self._kept.get(name)
        if kept is None or len(kept) < size:
            # torch aligns memory to cache lines; numpy often does not.
            kept = self._kept[name] = torch.empty(size, dtype=torch.uint8).numpy()
        return kept[:size].view(dtype).reshape(shape)

    def tensor(self, name: str, shape: tuple[int, ...], dtype: DTypeLike) -> Tensor:
        """The same as a tensor on the CPU."""
        return torch.from_numpy(self.array(name, shape, dtype))
