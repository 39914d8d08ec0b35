"""Random tiny models in memory, and what tests do with them: logits, a loss, an adapter that is not zero."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from nlora.config.schema import LoraOptions
from nlora.models.lora_adapter import AdapterState, LoraAdapter

FAMILIES = ["llama", "qwen2", "gemma", "mistral", "gpt2", "opt", "t5"]
LORA = LoraOptions(r=4, alpha=8, dropout=0.0)
SAME_SUMS = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
"""Whether this processor sums as those on which the tolerances for T5 were found.

T5 does not scale its attention, which magnifies another order of a sum: with AVX2, 2 to 5 times.
"""
IDS = torch.tensor([[5, 9, 17, 33, 2, 40], [7, 7, 21, 3, 60, 11]])


def load(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """The model of a folder that the fixture `tiny_model` made, in evaluation mode."""
    encoder_decoder = AutoConfig.from_pretrained(folder).is_encoder_decoder
    kind = AutoModelForSeq2SeqLM if encoder_decoder else AutoModelForCausalLM
    return kind.from_pretrained(folder, dtype=dtype).eval()


def logits(model: Any) -> Any:
    extra = {"decoder_input_ids": IDS[:, :3]} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return model(input_ids=IDS, **extra).logits


def loss(model: Any) -> Any:
    return model(input_ids=IDS, labels=IDS).loss


def spread(adapter: LoraAdapter, seed: int = 3) -> None:
    """Give the fresh adapter a B that is not zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for f in adapter.factors().values():
            f.B.copy_(torch.randn(f.B.shape, generator=generator) * 0.1)


def weights(model: Any) -> dict[str, torch.Tensor]:
    """A copy of every weight."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_bitwise(model: Any, before: dict[str, torch.Tensor]) -> None:
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def assert_same(one: AdapterState, other: AdapterState) -> None:
    assert one.keys() == other.keys()
    for name, f in one.items():
        assert torch.equal(f.A, other[name].A), name
        assert torch.equal(f.B, other[name].B), name
        assert f.scaling == other[name].scaling, name
