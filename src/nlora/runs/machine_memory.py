"""The memory of this machine and of this process, in bytes."""

from __future__ import annotations

from pathlib import Path

import psutil

_LIMIT = Path("/sys/fs/cgroup/memory.max")
"""The limit of a container on Linux; "max" if there is none."""


def used_bytes() -> int:
    """Resident size of this process."""
    return int(psutil.Process().memory_info().rss)


def free_bytes(device: str) -> int | None:
    """What a run may use: all of a GPU's memory, or the machine's free memory and what this process has already.

    None for a GPU that is not there.
    """
    if device == "cuda":
        import torch

        return int(torch.cuda.mem_get_info()[1]) if torch.cuda.is_available() else None
    return _within_limit(int(psutil.virtual_memory().available) + used_bytes())


def total_bytes() -> int:
    """The machine's memory, or what a container may use of it."""
    return _within_limit(int(psutil.virtual_memory().total))


def _within_limit(size_bytes: int) -> int:
    try:
        text = _LIMIT.read_text(encoding="utf-8").strip()
    except OSError:
        return size_bytes
    return min(size_bytes, int(text)) if text.isdigit() else size_bytes
