"""benchmarks/penalty.py: its contestants compute the same, its memory is what was allocated, it runs to its end."""

from __future__ import annotations

import argparse
import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmark_script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("penalty")


def test_the_contestants_compute_the_same(benchmark_script: Any) -> None:
    factors = benchmark_script.LoraFactors([(12, 20), (5, 20), (12, 20)], 4, torch.float32)
    wanted = sum(
        (4.0 * (B.detach() @ A.detach())).abs().sum().item()
        for A, B in zip(factors.As, factors.Bs, strict=True)
    )
    for name in ("plain", "single", "grouped"):
        assert getattr(benchmark_script, name)(factors).item() == pytest.approx(wanted, rel=1e-5)


def test_the_extra_memory_is_the_peak_of_the_allocations(benchmark_script: Any) -> None:
    """Two tensors of 4 MB at once, a third of 8 MB after the second is gone: 12 MB and a little."""
    x = torch.ones(1, requires_grad=True)
    factors = benchmark_script.LoraFactors([(2, 2)], 1, torch.float32)

    def work(_: Any) -> torch.Tensor:
        kept = torch.empty(10**6)
        torch.empty(10**6)
        torch.empty(2 * 10**6)
        del kept
        return x.sum()

    assert 12_000_000 <= benchmark_script.extra_bytes(work, factors) < 12_100_000


def test_a_large_module_needs_a_small_part_of_what_autograd_needs(
    benchmark_script: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    factors = benchmark_script.LoraFactors([(2048, 2048)], 8, torch.float32)
    out_times_in_bytes = 4 * 2048 * 2048
    assert benchmark_script.extra_bytes(benchmark_script.plain, factors) >= 2 * out_times_in_bytes
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert benchmark_script.extra_bytes(benchmark_script.single, factors) < 0.2 * out_times_in_bytes


def test_names_of_modules(benchmark_script: Any) -> None:
    assert benchmark_script.shapes_of("11008x4096") == [(11008, 4096)]
    assert len(benchmark_script.shapes_of("smollm2")) == 60
    for wrong in ("smollm3", "8x", "0x8", "8x8x8"):
        with pytest.raises(argparse.ArgumentTypeError, match=f"'{wrong}' is neither"):
            benchmark_script.shapes_of(wrong)


def test_it_runs_to_its_end(
    benchmark_script: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(benchmark_script.MODELS, "smollm2", [(16, 16)] * 3 + [(8, 16)] * 2)
    file = tmp_path / "penalty.json"
    benchmark_script.main(
        [
            "--modules",
            "16x8",
            "smollm2",
            "--ranks",
            "2",
            "--rounds",
            "2",
            "--seconds",
            "0",
            "--json",
            str(file),
        ]
    )
    printed = capsys.readouterr().out
    assert "| modules | r | factors | how |" in printed
    cases = json.loads(file.read_text())["cases"]
    assert [(c["modules"], c["dtype"], list(c["seconds"])) for c in cases] == [
        ("16x8", "float32", ["plain", "single"]),
        ("16x8", "bfloat16", ["plain", "single"]),
        ("smollm2", "float32", ["plain", "single", "grouped"]),
        ("smollm2", "bfloat16", ["plain", "single", "grouped"]),
    ]
    assert all(len(turns) == 2 and min(turns) > 0 for c in cases for turns in c["seconds"].values())
    assert all(size > 0 for c in cases for size in c["extra_bytes"].values())
