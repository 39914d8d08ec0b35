"""bfloat16 products are timed in both ways, and torch has its own again afterwards."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nlora.kernels import bfloat16_products


def test_products_runs(
    script: Callable[[str], Any],
    tiny_model: Callable[[str], Path],
    benchmark_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    products = script("products")
    monkeypatch.setattr(products, "SIZES", [(2, 8, 16)])
    monkeypatch.setattr(products, "BLOCKS", [2**18])
    monkeypatch.setattr(products, "SECONDS", 0.001)
    block = bfloat16_products.BLOCK_NUMBERS
    arguments = ["--model", str(tiny_model("llama")), "--data", str(benchmark_folder), "--batch-size", "4"]
    arguments += ["--rounds", "1", "--steps", "2", "--blocks", "--json", str(tmp_path / "figures.json")]
    products.main(arguments)
    assert block == bfloat16_products.BLOCK_NUMBERS
    made = json.loads((tmp_path / "figures.json").read_text())
    of_product = made["products"]["2 x 8, 8 x 16, as stored"]
    assert list(of_product) == ["float32", "torch's own", "nlora", "0.25 MiB"]
    seconds = made["steps"]["a step of training"]
    ratio = seconds["nlora"][0] / seconds["float32"][0]
    assert f"| {ratio:.3g} ({ratio:.3g} to {ratio:.3g}) |" in capsys.readouterr().out.splitlines()[-1]
