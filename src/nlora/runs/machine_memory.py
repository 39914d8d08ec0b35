"""The memory of this machine and of this process, in bytes."""

from __future__ import annotations

from pathlib import Path

import psutil
import torch

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
        return int(torch.cuda.mem_get_info()[1]) if torch.cuda.is_available() else None
    free = int(psutil.virtual_memory().available) + used_bytes()
    return min(free, int(text)) if (text := _limit()).isdigit() else free


def _limit() -> str:
    try:
        return _LIMIT.read_text(encoding="utf-8").strip()
    except OSError:
        return "max"
