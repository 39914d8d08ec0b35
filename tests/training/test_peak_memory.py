"""The peak of a process is its own, and not that of the process that started it."""

from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """
import torch
from nlora.training.peak_memory import peak_memory_bytes
torch.ones(2**20)  # the first tensor costs some memory once, by PyTorch's build
before = peak_memory_bytes()
torch.ones(2**25)  # 128 MiB
print(before, peak_memory_bytes())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not hand a peak down")
def test_a_process_does_not_inherit_a_peak() -> None:
    large = b"\1" * 2**30  # this process is larger than the one that it starts
    answer = subprocess.run([sys.executable, "-c", CODE], check=True, capture_output=True, text=True).stdout
    before, after = map(int, answer.split())
    assert before < len(large)
    assert after - before == pytest.approx(2**27, rel=0.05)
