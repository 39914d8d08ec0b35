"""Too little memory is told in a line that says what to change, wherever it shows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from nlora.config import load
from nlora.errors import ModelError

CPU = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: tried to allocate 8"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (MemoryError(), 1),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), 1),
        (RuntimeError(CPU), 1),
        (ModelError(f"model m: cannot answer a prompt of these tasks: RuntimeError: {CPU}"), 2),
    ],
)
def test_the_remedy_is_told(
    nlora: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, error: Exception, status: int
) -> None:
    def fail(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(load, "load_config", fail)
    told = nlora("run", "demo")
    assert told.status == status
    assert "out of memory; nlora check FILE estimates what a run needs" in told.err
    assert "internal error" not in told.err


def test_another_error_is_not_taken_for_it(
    nlora: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise RuntimeError("shapes cannot be multiplied")

    monkeypatch.setattr(load, "load_config", fail)
    told = nlora("run", "demo")
    assert told.status == 1
    assert "internal error: RuntimeError: shapes cannot be multiplied" in told.err
    assert "memory" not in told.err
