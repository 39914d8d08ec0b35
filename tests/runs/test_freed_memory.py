"""A run gives freed memory back, whatever the C library would do by itself."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Freed blocks of 8 MiB have glibc keep such blocks from then on. What is allocated after them holds the heap's end.
CODE = """
import psutil, torch
from nlora.runs.freed_memory import return_freed_memory
if "return" in ARGUMENTS:
    return_freed_memory()
def held():
    return psutil.Process().memory_info().rss
torch.ones(2**21)
before = held()
blocks = [torch.ones(n) for _ in range(16) for n in (2**20, 2**10)]
del blocks[::2]
print((held() - before) // 2**20)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not use glibc")
@pytest.mark.parametrize(("arguments", "least", "most"), [(["return"], 0, 4), ([], 32, 80)])
def test_large_blocks_leave_no_gaps(arguments: list[str], least: int, most: int) -> None:
    code = CODE.replace("ARGUMENTS", repr(arguments))
    answer = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert least <= int(answer) <= most
