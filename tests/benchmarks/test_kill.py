"""Runs that are killed, extended, damaged and repaired end with the same files, also those of two processes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "kill.py"


def kill(kills: int, *options: str) -> tuple[int, int]:
    """Assert that these kills change nothing; returns the numbers of runs and events."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, str(SCRIPT), "--kills", str(kills), "--events-only", *options]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.match(rf"{kills} kills in (\d+) runs of (\d+) events: 0 of them ended otherwise", done.stdout)
    assert found is not None
    return int(found[1]), int(found[2])


@pytest.mark.skipif(os.name == "nt", reason="it forks processes, which Windows cannot")
def test_50_kills_change_nothing() -> None:
    runs, events = kill(50)
    assert runs > 1
    assert events > 200  # the counting reached the writes


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="it forks processes, which Windows cannot")
def test_kills_of_either_of_two_processes_change_nothing() -> None:
    runs, _ = kill(6, "--processes", "2")
    assert runs >= 1


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="it forks processes, which Windows cannot")
def test_random_lives_change_nothing() -> None:
    command = [sys.executable, str(SCRIPT.parent / "lives.py"), "--lives", "2", "--seed", "1", "ewc"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    did = done.stdout.splitlines()[0]
    assert all(what in did for what in ("kills", "files damaged", "repairs", "tasks appended"))
    assert done.stdout.endswith("\n0 of them ended otherwise\n")
