"""benchmarks/evaluate.py takes an update that it trained before only where everything is as it was then."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nlora.data.tokenize import ExampleTokenizer


def test_an_update_is_trained_anew_for_every_option_that_it_depends_on(
    script: Callable[[str], Any],
    tiny_model: Callable[[str], Path],
    benchmark_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    evaluate, measure = script("evaluate"), script("measure")
    model, other_model = tiny_model("llama"), tmp_path / "other" / tiny_model("llama").name
    shutil.copytree(model, other_model)
    other_data = tmp_path / "other_data"
    shutil.copytree(benchmark_folder, other_data)
    file = other_data / "TC" / "agnews" / "train.json"
    file.write_text(json.dumps([row | {"sentence": "a dog"} for row in json.loads(file.read_text())]))
    given = {
        "model": str(model), "dtype": "float32", "data": str(benchmark_folder), "train_examples": 8, "epochs": 1.0,
        "folder": str(tmp_path / "updates"),
    }  # fmt: skip

    def state(**changes: Any) -> Any:
        options = argparse.Namespace(**given | changes)
        backbone = measure.read_model(options.model, options.dtype)
        encoder = ExampleTokenizer(
            backbone.tokenizer, encoder_decoder=False, max_source_tokens=64, max_target_tokens=8
        )
        task = measure.read_task(options.data, "agnews")
        return evaluate.trained(backbone, encoder, task, options)

    first = state()
    changes: list[dict[str, Any]] = [
        {"dtype": "bfloat16"},
        {"epochs": 2.0},
        {"train_examples": 4},
        {"data": str(other_data)},
        {"model": str(other_model)},
    ]
    for count, change in enumerate(changes, start=2):
        state(**change)
        assert len(list((tmp_path / "updates").iterdir())) == count, change
    capsys.readouterr()
    again = state()
    assert "training" not in capsys.readouterr().err
    assert all(torch.equal(f.B, again[name].B) for name, f in first.items())
