"""LoRA on experts, trained by several processes: an expert that no token of a process reaches, and a penalty on all."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from process_group import learn_together
from transformers import SwitchTransformersConfig, SwitchTransformersForConditionalGeneration

from helpers import learn, write_config
from nlora.runs.summary import read_summary


@pytest.fixture(scope="module")
def switch(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Callable[[bool], Any]) -> Path:
    """A tiny model with many more experts than a batch has texts."""
    folder, tokenizer = tmp_path_factory.mktemp("switch"), tiny_tokenizer(True)
    config = SwitchTransformersConfig(
        vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=16, num_heads=2, num_layers=2, num_decoder_layers=2,
        num_sparse_encoder_layers=1, num_sparse_decoder_layers=1, num_experts=32, dropout_rate=0.0,
        router_jitter_noise=0.0, decoder_start_token_id=0, pad_token_id=0, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    SwitchTransformersForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_penalty_on_experts_that_no_token_reached(switch: Path, tmp_path: Path) -> None:
    values: dict[str, Any] = {
        "method": {"name": "nlora", "weight": 1e-3},
        "lora": {"r": 2, "alpha": 4, "dropout": 0.0, "targets": "all-linear"},
        "train": {"epochs": 1, "batch_size": 4, "learning_rate": 5e-3, "logging_steps": 1},
    }
    config = write_config(tmp_path, switch, **values)
    alone, together = tmp_path / "alone", tmp_path / "together"
    learn(config, f"output_dir={alone}")
    learn_together(2, [(config, [f"output_dir={together}"])], tmp_path / "group", "torchrun")
    assert read_summary(together).status == "complete"
    logs = [
        json.loads((run / "outputs/2-animals/trainer_state.json").read_text())["log_history"]
        for run in (alone, together)
    ]
    one, two = ([line["penalty"] for line in log if "penalty" in line] for log in logs)
    assert one[-1] > 0
    assert two == pytest.approx(one, rel=0.2)
