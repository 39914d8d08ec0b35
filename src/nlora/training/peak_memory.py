"""The peak memory of the GPU or of this process."""

from __future__ import annotations

import re
import resource
import sys
from pathlib import Path

import torch


def peak_memory_bytes() -> int:
    """Most memory used so far: of the GPU if there is one, else the resident size of this process."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    if (
        sys.platform == "linux"
    ):  # where ru_maxrss is never below the peak of the process that started this one
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        if found := re.search(r"^VmHWM:\s*(\d+) kB", status, re.MULTILINE):
            return int(found[1]) * 1024
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def reset_peak_memory() -> None:
    """Start counting again on a GPU. A process's largest resident size cannot be reset."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
