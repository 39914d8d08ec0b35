"""Which layers are adapted by default, and the messages for targets that cannot be adapted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as PEFT_TARGETS

from helpers import write_config
from nlora.config.schema import LoraOptions
from nlora.errors import ModelError
from nlora.models.lora_adapter import LoraAdapter, ModuleShape, target_modules
from nlora.models.target_modules import target_names
from tiny import FAMILIES, IDS, LORA, load, logits, spread


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
        ModuleShape("model.layers.0.self_attn.q_proj", 32, 32, LORA.r),
        ModuleShape("model.layers.0.self_attn.v_proj", 32, 16, LORA.r),
        ModuleShape("model.layers.1.self_attn.q_proj", 32, 32, LORA.r),
        ModuleShape("model.layers.1.self_attn.v_proj", 32, 16, LORA.r),
    ]
    # GPT-2's fused layer stores its weight as (in, out).
    assert target_modules(make("gpt2"), LORA)[0] == ModuleShape("transformer.h.0.attn.c_attn", 32, 96, LORA.r)
    # T5: 2 encoder and 2 decoder blocks, of which the latter have cross attention too.
    assert len(target_modules(make("t5"), LORA)) == 2 * (2 + 4)


@pytest.mark.parametrize("family", FAMILIES)
def test_target_modules_lists_the_layers_that_are_adapted(family: str, make: Callable[..., Any]) -> None:
    model = make(family)
    said = {shape.name: (shape.out_features, shape.in_features) for shape in target_modules(model, LORA)}
    adapter = LoraAdapter.attach(model, LORA, seed=1)
    assert {name: f.shape for name, f in adapter.factors().items()} == said
    trained = {name for name, p in adapter.model.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * len(said)
    assert all(".lora_A." in name or ".lora_B." in name for name in trained)


def test_a_model_with_unknown_names_is_refused_with_a_list_of_its_layers(make: Callable[..., Any]) -> None:
    model = make("llama")
    for layer in model.model.layers:
        attention = layer.self_attn
        attention.wobble = attention.v_proj
        del attention.v_proj
    with pytest.raises(ModelError, match=r"set lora\.targets .*: q_proj \(x2\), .*wobble \(x2\).*lm_head"):
        target_modules(model, LORA)


class Wrapped(torch.nn.Module):
    """A projection whose layer is one level further down, as in Inkling 2."""

    def __init__(self, linear: torch.nn.Module) -> None:
        super().__init__()
        self.linear = linear


def test_projections_inside_a_module_of_their_own_are_found(make: Callable[..., Any]) -> None:
    model = make("llama")
    for layer in model.model.layers:
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            setattr(layer.self_attn, name, Wrapped(getattr(layer.self_attn, name)))
    assert target_names(model, LORA) == ["q_proj.linear", "v_proj.linear"]
    assert [shape.name for shape in target_modules(model, LORA)][:2] == [
        "model.layers.0.self_attn.q_proj.linear",
        "model.layers.0.self_attn.v_proj.linear",
    ]


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
    adapter = LoraAdapter.attach(make("llama"), LoraOptions(targets=(name,)), seed=1)
    assert list(adapter.factors()) == [name]


@pytest.mark.parametrize(
    ("family", "within", "ends"),
    [
        ("gemma3", "model.language_model.", ["q_proj", "v_proj"]),
        ("phi4_multimodal", "model.layers.", ["qkv_proj"]),
        ("git", "git.encoder.", ["query", "value"]),
        ("t5gemma2", "model.", ["q_proj", "v_proj"]),
        ("bart (decoder)", "model.decoder.", ["q_proj", "v_proj"]),
    ],
)
def test_only_layers_that_process_text_are_adapted(
    family: str, within: str, ends: list[str], tiny_family: Callable[[str], Any]
) -> None:
    """In towers for images and sounds, and in unused cross-attention, an update would stay 0."""
    model = tiny_family(family)
    adapter = LoraAdapter.attach(model, LORA, seed=1)
    names = list(adapter.factors())
    assert {name.rpartition(".")[2] for name in names} == set(ends)
    assert all(name.startswith(within) and "vision" not in name for name in names)
    spread(adapter)
    inputs = {"decoder_input_ids": IDS} if model.config.is_encoder_decoder else {}
    adapter.model(input_ids=IDS, **inputs).logits.square().mean().backward()
    assert all(bool(f.A.grad is not None and f.A.grad.any()) for f in adapter.factors().values())


def test_stock_peft_loads_an_adapter_of_the_language_model_alone(
    tiny_family: Callable[[str], Any], tmp_path: Path
) -> None:
    model = tiny_family("gemma3")
    adapter = LoraAdapter.attach(model, LORA, seed=1)
    spread(adapter)
    adapter.save(tmp_path, base_model="")
    loaded = PeftModel.from_pretrained(tiny_family("gemma3"), str(tmp_path)).eval()
    assert {name for name, _ in loaded.named_parameters() if "lora_" in name} == {
        name for name, _ in adapter.model.named_parameters() if "lora_" in name
    }
    torch.testing.assert_close(logits(loaded), logits(adapter.model.eval()))


def test_a_target_that_does_not_process_text_is_refused(tiny_family: Callable[[str], Any]) -> None:
    targets = ("model.vision_tower.encoder.layers.0.self_attn.q_proj",)
    with pytest.raises(ModelError, match=r"model\.vision_tower.*q_proj of Gemma3.* does not process text"):
        target_modules(tiny_family("gemma3"), LoraOptions(targets=targets))


@pytest.mark.parametrize(
    ("family", "ends"),
    [
        ("deepseek_v2", ["kv_b_proj", "q_b_proj"]),
        ("deepseek_v3", ["kv_b_proj", "q_b_proj"]),
        ("glm4_moe_lite", ["kv_b_proj", "q_b_proj"]),
        ("minicpm3", ["kv_b_proj", "q_b_proj"]),
        ("kimi_linear", ["kv_b_proj", "q_proj", "v_proj"]),  # three of four layers have no latent attention
    ],
)
def test_latent_attention_is_adapted_at_the_layers_that_serve_all_heads(
    family: str, ends: list[str], tiny_family: Callable[[str], Any]
) -> None:
    shapes = target_modules(tiny_family(family), LORA)
    assert sorted({shape.name.rpartition(".")[2] for shape in shapes}) == ends


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
def test_all_linear_adapts_the_same_layers_as_peft(family: str, make: Callable[..., Any]) -> None:
    lora = LoraOptions.model_validate({"r": 4, "targets": "all-linear"})
    ours = LoraAdapter.attach(make(family), lora, seed=1)
    kind = "SEQ_2_SEQ_LM" if family == "t5" else "CAUSAL_LM"
    config = LoraConfig(task_type=kind, r=4, target_modules="all-linear", fan_in_fan_out=family == "gpt2")
    theirs = get_peft_model(make(family), config)
    assert {name for name, _ in ours.model.named_parameters()} == {
        name for name, _ in theirs.named_parameters()
    }


@pytest.mark.parametrize("family", ["deepseek_v3", "glm4_moe", "ernie4_5_moe"])
def test_dense_layers_that_peft_takes_for_experts(family: str, tiny_family: Callable[[str], Any]) -> None:
    """PEFT adapted the experts instead, so that the dense layers of the same names had no adapter."""
    names = ("gate_proj", "up_proj", "down_proj")
    model = tiny_family(family)
    assert any(name.rpartition(".")[2] in names for name, _ in model.named_modules())
    for targets in (names, ("o_proj", "down_proj")):
        with pytest.raises(
            ModelError, match=r"lora\.targets: PEFT takes down_proj.* for layers of its experts"
        ):
            LoraAdapter.attach(model, LoraOptions.model_validate({"targets": targets, "dropout": 0}), seed=1)
    lora = LoraOptions.model_validate({"r": 2, "targets": "all-linear"})
    shapes = target_modules(model, lora)
    assert shapes
    assert not {shape.name.rpartition(".")[2] for shape in shapes} & set(names)
    adapter = LoraAdapter.attach(model, lora, seed=1)
    trained = [name for name, p in adapter.model.named_parameters() if p.requires_grad]
    assert len(trained) == 2 * len(shapes)


def test_check_names_layers_that_peft_refuses(
    tmp_path: Path,
    tiny_family: Callable[..., Any],
    tiny_tokenizer: Callable[[bool], Any],
    nlora: Callable[..., Any],
) -> None:
    """PEFT raises only when it adapts a layer, which used to be an internal error after a successful check."""
    tiny_family("mamba").save_pretrained(tmp_path / "mamba")
    tiny_tokenizer(False).save_pretrained(tmp_path / "mamba")
    config = write_config(tmp_path, tmp_path / "mamba", lora={"targets": ["out_proj"]})
    told = nlora("check", config)
    assert told.status == 2
    assert "lora.targets: PEFT cannot adapt these layers: " in told.err
    assert "'out_proj' is incompatible with Mamba-based models" in told.err
