"""A backbone is the same before and after a pass."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    BigBirdPegasusConfig,
    BigBirdPegasusForConditionalGeneration,
    RwkvConfig,
    RwkvForCausalLM,
)

from nlora.models.lora_adapter import LoraAdapter
from nlora.models.merged_updates import MergedUpdates
from nlora.models.side_effects import without_side_effects
from tiny import IDS, LORA, spread


def rwkv() -> Any:
    torch.manual_seed(0)
    model = RwkvForCausalLM(
        RwkvConfig(vocab_size=64, hidden_size=32, num_hidden_layers=8, attention_hidden_size=32)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval().requires_grad_(False)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


def test_rwkv_reads_an_update_alike_in_training_and_in_evaluation() -> None:
    """It divides the weights of its deep layers in one of the two, and not what is attached to them."""
    plain, model = logits(rwkv()), rwkv()
    without_side_effects(model)
    torch.testing.assert_close(logits(model), plain)  # the same function
    adapter = LoraAdapter.attach(model, LORA.model_copy(update={"targets": ("output", "value")}), seed=1)
    spread(adapter)
    read = logits(model)
    assert (read - plain).abs().max() > 1e-3
    model.train()
    torch.testing.assert_close(logits(model), read)
    state = adapter.state()
    adapter.detach()
    merged = MergedUpdates(model, list(state))
    for is_training in (True, False):
        model.train(is_training)
        logits(model)
        merged.activate([state])
        torch.testing.assert_close(logits(model.eval()), read, rtol=1e-4, atol=1e-5)
        merged.deactivate()
        torch.testing.assert_close(logits(model), plain)


def test_a_short_text_does_not_change_how_bigbird_reads_a_long_one() -> None:
    torch.manual_seed(0)
    sizes = {"encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    config = BigBirdPegasusConfig(
        vocab_size=64, d_model=16, block_size=4, num_random_blocks=1, **sizes, **heads
    )
    model: Any = BigBirdPegasusForConditionalGeneration(config).eval()
    without_side_effects(model)
    assert model.config.attention_type == "original_full"
    long = torch.arange(120)[None] % 60 + 2
    answer = torch.tensor([[2, 5]])
    with torch.no_grad():
        before = model(input_ids=long, decoder_input_ids=answer).logits
        model(input_ids=long[:, :9], decoder_input_ids=answer)
        assert torch.equal(model(input_ids=long, decoder_input_ids=answer).logits, before)
