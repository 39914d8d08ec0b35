"""Killed 50 times at random moments, the same command ends with the same files."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "kill.py"


@pytest.mark.skipif(os.name == "nt", reason="forks")
def test_50_kills_change_nothing() -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, str(SCRIPT), "--kills", "50", "--events-only"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.match(r"50 kills in (\d+) runs of (\d+) events: 0 of them ended otherwise", done.stdout)
    assert found is not None
    assert int(found[1]) > 1
    assert int(found[2]) > 200  # the counting reached the writes
