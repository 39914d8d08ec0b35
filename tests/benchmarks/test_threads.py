"""A benchmark's number of threads also holds for the processes that it starts."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch


@pytest.mark.parametrize("name", ["load", "tokenization"])
def test_threads_are_those_of_the_processes_that_a_benchmark_starts(
    script: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    part = tmp_path / "part.py"
    part.write_text(
        "import json, os, sys\n"
        "figures = dict.fromkeys(['seconds', 'cpu_seconds', 'peak_bytes', 'grown_bytes', 'read_seconds'], 1)\n"
        "threads = os.environ.get('OMP_NUM_THREADS')\n"
        "open(sys.argv[-1], 'w').write(json.dumps(figures | {'threads': threads}))\n"
    )
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("NLORA_CACHE", str(tmp_path))  # load changes it
    benchmark, threads = script(name), torch.get_num_threads()
    monkeypatch.setattr(benchmark, "__file__", str(part))
    given = {"load": ["compare"], "tokenization": ["--examples", "1", "--rounds", "1"]}[name]
    json_file = tmp_path / "figures.json"
    monkeypatch.setattr(sys, "argv", [name, *given, "--threads", "3", "--json", str(json_file)])
    try:
        benchmark.main()
    finally:
        torch.set_num_threads(threads)
    figures = json.loads(json_file.read_text())
    found = [figures["compare"]] if name == "load" else [f for [f] in figures["turns"]["1"].values()]
    assert [f["threads"] for f in found] == ["3"] * len(found)
