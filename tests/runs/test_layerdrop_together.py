"""Several processes train a model that leaves out whole layers at random, each process other ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from process_group import learn_together
from transformers import (
    BertConfig,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    M2M100Config,
    M2M100ForConditionalGeneration,
)

from helpers import write_config
from nlora.config.schema import LoraOptions
from nlora.runs.resumable import _draws_apart
from nlora.runs.summary import read_summary


@pytest.fixture(scope="module")
def m2m100(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Callable[[bool], Any]) -> Path:
    """M2M100's own configuration has 0.05; here most steps leave out a layer."""
    folder, tokenizer = tmp_path_factory.mktemp("m2m100"), tiny_tokenizer(True)
    config = M2M100Config(
        vocab_size=len(tokenizer), d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, encoder_layerdrop=0.5, decoder_layerdrop=0.0,
        dropout=0.0, attention_dropout=0.0, activation_dropout=0.0, max_position_embeddings=512,
        decoder_start_token_id=1, pad_token_id=0, eos_token_id=1, bos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    M2M100ForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("method", ["inclora", {"name": "nlora", "weight": 1e-3, "clipped": False}])
def test_the_steps_are_the_same_on_all_processes(m2m100: Path, tmp_path: Path, method: Any) -> None:
    """Else torch ends them with an error at the next step."""
    train = {"epochs": 2, "batch_size": 4, "learning_rate": 5e-3}
    config = write_config(tmp_path, m2m100, method=method, train=train)
    learn_together(2, [(config, [])], tmp_path / "group", "torchrun")
    assert read_summary(tmp_path / "run").status == "complete"


def test_dropout_of_a_model_within_the_model_is_found() -> None:
    def draws(rate: float) -> bool:
        bert = BertConfig(
            vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8,
            hidden_dropout_prob=rate, attention_probs_dropout_prob=0.0,
        )  # fmt: skip
        config = EncoderDecoderConfig.from_encoder_decoder_configs(bert, bert)
        return _draws_apart(EncoderDecoderModel(config), LoraOptions(dropout=0.0), None)

    assert draws(0.1)
    assert not draws(0.0)
