"""The states of this process's random generators."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def random_state() -> dict[str, Any]:
    """Of Python, numpy, torch, and every GPU that this process sees."""
    version, numbers, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state()
    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {
        "python": [version, list(numbers), gauss],
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached],
        "cpu": torch.get_rng_state(),
        "gpus": gpus,
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Continue with the random numbers that followed `random_state`."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, keys, *others = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *others))
    torch.set_rng_state(state["cpu"])
    if state["gpus"]:
        torch.cuda.set_rng_state_all(state["gpus"])


@contextmanager
def kept_random_state() -> Iterator[None]:
    """A block after which the CPU's generators go on as if it had drawn nothing: a training seeds those of its host."""
    python, numbers = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numbers)
