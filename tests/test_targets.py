"""Which layers are adapted by default, and what is said of targets that cannot be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as PEFT_TARGETS

from nlora.adapters import Adapter, ModuleShape, target_modules
from nlora.config import LoraOptions
from nlora.errors import ModelError
from nlora.targets import target_names
from tiny import FAMILIES, LORA, load


@pytest.fixture
def make(tiny_model: Callable[[str], Path]) -> Callable[..., Any]:
    """make(family, dtype=float32) -> a random tiny model, always the same weights."""
    return lambda family, *dtype: load(tiny_model(family), *dtype)


@pytest.mark.parametrize("family", FAMILIES)
def test_default_targets_are_those_that_peft_knows_for_the_family(
    family: str, make: Callable[..., Any]
) -> None:
    model = make(family)
    assert target_names(model, LORA) == PEFT_TARGETS[model.config.model_type]


def test_target_modules_names_and_shapes(make: Callable[..., Any]) -> None:
    assert target_modules(make("llama"), LORA) == [
        ModuleShape("model.layers.0.self_attn.q_proj", 32, 32),
        ModuleShape("model.layers.0.self_attn.v_proj", 32, 16),
        ModuleShape("model.layers.1.self_attn.q_proj", 32, 32),
        ModuleShape("model.layers.1.self_attn.v_proj", 32, 16),
    ]
    # GPT-2's fused layer stores its weight as (in, out).
    assert target_modules(make("gpt2"), LORA)[0] == ModuleShape("transformer.h.0.attn.c_attn", 32, 96)
    # T5: 2 encoder and 2 decoder blocks, of which the latter have cross attention too.
    assert len(target_modules(make("t5"), LORA)) == 2 * (2 + 4)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_target_modules_says_is_what_is_adapted(family: str, make: Callable[..., Any]) -> None:
    model = make(family)
    said = {shape.name: (shape.out_features, shape.in_features) for shape in target_modules(model, LORA)}
    adapter = Adapter.attach(model, LORA, seed=1)
    assert {name: f.shape for name, f in adapter.factors().items()} == said
    trained = {name for name, p in adapter.model.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * len(said)
    assert all(".lora_A." in name or ".lora_B." in name for name in trained)


def test_a_model_of_unknown_names_is_refused_with_the_names_there_are(make: Callable[..., Any]) -> None:
    model = make("llama")
    for layer in model.model.layers:
        attention = layer.self_attn
        attention.wobble = attention.v_proj
        del attention.v_proj
    with pytest.raises(ModelError, match=r"set lora\.targets .*: q_proj \(x2\), .*wobble \(x2\).*lm_head"):
        target_modules(model, LORA)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (
            ("q_proj", "v_prj"),
            r"has no layer v_prj; did you mean 'v_proj'\? its linear layers are q_proj \(x2\)",
        ),
        (("input_layernorm",), r"input_layernorm is a LlamaRMSNorm, not a linear layer"),
        ((), r"lora\.targets is an empty list"),
    ],
)
def test_bad_targets(targets: tuple[str, ...], message: str, make: Callable[..., Any]) -> None:
    with pytest.raises(ModelError, match=message):
        target_modules(make("llama"), LoraOptions(targets=targets))


def test_a_head_that_shares_the_embeddings_weight_is_refused(make: Callable[..., Any]) -> None:
    with pytest.raises(ModelError, match="lm_head shares its weight with the input embedding"):
        target_modules(make("gpt2"), LoraOptions(targets=("lm_head",)))


def test_a_target_may_be_a_whole_name(make: Callable[..., Any]) -> None:
    name = "model.layers.1.self_attn.o_proj"
    adapter = Adapter.attach(make("llama"), LoraOptions(targets=(name,)), seed=1)
    assert list(adapter.factors()) == [name]
