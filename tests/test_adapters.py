"""Attaching, saving and reading adapters, checked against stock PEFT and plain matrix products."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as PEFT_TARGETS
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from nlora.adapters import Adapter, Factors, ModuleShape, State, load_factors, target_modules
from nlora.config import LoraOptions
from nlora.errors import AdapterError, ModelError
from nlora.targets import target_names

FAMILIES = ["llama", "qwen2", "gemma", "mistral", "gpt2", "opt", "t5"]
LORA = LoraOptions(r=4, alpha=8, dropout=0.0)
IDS = torch.tensor([[5, 9, 17, 33, 2, 40], [7, 7, 21, 3, 60, 11]])
# PEFT reads a property by a name that newer transformers deprecates; nothing here depends on it.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture
def load(tiny_model: Callable[[str], Path]) -> Callable[..., Any]:
    def make(family: str, dtype: torch.dtype = torch.float32) -> Any:
        kind = AutoModelForSeq2SeqLM if family == "t5" else AutoModelForCausalLM
        return kind.from_pretrained(tiny_model(family), dtype=dtype).eval()

    return make


def logits(model: Any) -> torch.Tensor:
    extra = {"decoder_input_ids": IDS[:, :3]} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return model(input_ids=IDS, **extra).logits


def loss(model: Any) -> torch.Tensor:
    return model(input_ids=IDS, labels=IDS).loss


def spread(adapter: Adapter, seed: int = 3) -> None:
    """Give the fresh adapter a B that is not zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for f in adapter.factors().values():
            f.B.copy_(torch.randn(f.B.shape, generator=generator) * 0.1)


def assert_same(one: State, other: State) -> None:
    assert list(one) == list(other)
    for name, f in one.items():
        assert torch.equal(f.A, other[name].A), name
        assert torch.equal(f.B, other[name].B), name
        assert f.scaling == other[name].scaling, name


# --- targets ---


@pytest.mark.parametrize("family", FAMILIES)
def test_default_targets_are_those_that_peft_knows_for_the_family(
    family: str, load: Callable[..., Any]
) -> None:
    model = load(family)
    assert target_names(model, LORA) == PEFT_TARGETS[model.config.model_type]


def test_target_modules_names_and_shapes(load: Callable[..., Any]) -> None:
    assert target_modules(load("llama"), LORA) == [
        ModuleShape("model.layers.0.self_attn.q_proj", 32, 32),
        ModuleShape("model.layers.0.self_attn.v_proj", 32, 16),
        ModuleShape("model.layers.1.self_attn.q_proj", 32, 32),
        ModuleShape("model.layers.1.self_attn.v_proj", 32, 16),
    ]
    # GPT-2's fused layer stores its weight as (in, out).
    assert target_modules(load("gpt2"), LORA)[0] == ModuleShape("transformer.h.0.attn.c_attn", 32, 96)
    # T5: 2 encoder and 2 decoder blocks, of which the latter have cross attention too.
    assert len(target_modules(load("t5"), LORA)) == 2 * (2 + 4)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_target_modules_says_is_what_is_adapted(family: str, load: Callable[..., Any]) -> None:
    model = load(family)
    said = {shape.name: (shape.out_features, shape.in_features) for shape in target_modules(model, LORA)}
    adapter = Adapter.attach(model, LORA, seed=1)
    assert {name: f.shape for name, f in adapter.factors().items()} == said
    trained = {name for name, p in adapter.model.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * len(said)
    assert all(".lora_A." in name or ".lora_B." in name for name in trained)


def test_a_model_of_unknown_names_is_refused_with_the_names_there_are(load: Callable[..., Any]) -> None:
    model = load("llama")
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
def test_bad_targets(targets: tuple[str, ...], message: str, load: Callable[..., Any]) -> None:
    with pytest.raises(ModelError, match=message):
        target_modules(load("llama"), LoraOptions(targets=targets))


def test_a_head_that_shares_the_embeddings_weight_is_refused(load: Callable[..., Any]) -> None:
    with pytest.raises(ModelError, match="lm_head shares its weight with the input embedding"):
        target_modules(load("gpt2"), LoraOptions(targets=("lm_head",)))


def test_a_target_may_be_a_whole_name(load: Callable[..., Any]) -> None:
    name = "model.layers.1.self_attn.o_proj"
    adapter = Adapter.attach(load("llama"), LoraOptions(targets=(name,)), seed=1)
    assert list(adapter.factors()) == [name]


# --- attach and detach ---


@pytest.mark.parametrize("family", FAMILIES)
def test_attach_and_detach_leave_the_backbone_as_it_was(family: str, load: Callable[..., Any]) -> None:
    model = load(family)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    before = logits(model)
    for _ in range(2):  # a second adapter must attach without a warning
        adapter = Adapter.attach(model, LORA, seed=1)
        assert torch.equal(logits(adapter.model), before), "a fresh adapter must not change the model"
        spread(adapter)
        assert not torch.equal(logits(adapter.model), before)
        assert adapter.detach() is model
    after = model.state_dict()
    assert list(after) == list(weights)
    assert all(torch.equal(after[name], tensor) for name, tensor in weights.items())
    assert {name for name, p in model.named_parameters() if p.requires_grad} == trainable
    assert torch.equal(logits(model), before)


def test_a_second_adapter_beside_the_first_is_refused(load: Callable[..., Any]) -> None:
    model = load("llama")
    Adapter.attach(model, LoraOptions(targets=("q_proj",)), seed=1)
    for target in ("q_proj", "o_proj"):
        with pytest.raises(AdapterError, match="has an adapter already"):
            Adapter.attach(model, LoraOptions(targets=(target,)), seed=1)


def test_the_factors_depend_on_the_seed_alone(load: Callable[..., Any]) -> None:
    model = load("llama")
    torch.manual_seed(0)
    first = Adapter.attach(model, LORA, seed=5)
    drawn = torch.rand(3)
    one = first.state()
    first.detach()
    torch.manual_seed(0)
    assert torch.equal(torch.rand(3), drawn), "attaching must draw nothing from the caller's generator"
    second = Adapter.attach(model, LORA, seed=5)
    assert_same(second.state(), one)
    second.detach()
    other = Adapter.attach(model, LORA, seed=6).state()
    assert all(not torch.equal(other[name].A, f.A) for name, f in one.items())


def test_fresh_factors_are_kaiming_and_zero(load: Callable[..., Any]) -> None:
    for f in Adapter.attach(load("llama"), LORA, seed=5).state().values():
        bound = 1 / f.A.shape[1] ** 0.5  # Kaiming uniform with a = sqrt(5)
        assert f.A.abs().max() <= bound
        assert f.A.abs().max() > 0.9 * bound
        assert not f.B.any()
        assert f.scaling == 2.0


def test_factors_stay_float32_over_a_bfloat16_backbone(load: Callable[..., Any]) -> None:
    adapter = Adapter.attach(load("llama", torch.bfloat16), LORA, seed=5)
    assert {f.A.dtype for f in adapter.factors().values()} == {torch.float32}
    assert {f.B.dtype for f in adapter.factors().values()} == {torch.float32}
    loss(adapter.model).backward()
    assert all(f.B.grad is not None and f.B.grad.any() for f in adapter.factors().values())


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
def test_checkpointing_gives_the_same_gradients(family: str, load: Callable[..., Any]) -> None:
    model = load(family)
    grads = []
    for checkpointing in (False, True):
        adapter = Adapter.attach(model, LORA, seed=5)
        spread(adapter)
        if checkpointing:
            adapter.enable_checkpointing()
            assert model.is_activation_checkpointing
        adapter.model.train()
        torch.manual_seed(0)  # dropout must be the same, and the same again when recomputed
        loss(adapter.model).backward()
        grads.append([p.grad for f in adapter.factors().values() for p in (f.A, f.B)])
        adapter.detach()
    assert not model.is_activation_checkpointing
    assert (
        not model.get_input_embeddings()(IDS).requires_grad
        or model.get_input_embeddings().weight.requires_grad
    )
    for plain, checkpointed in zip(*grads, strict=True):
        torch.testing.assert_close(checkpointed, plain, rtol=1e-3, atol=1e-4 * plain.abs().max().item())


# --- state ---


def test_state_is_a_copy_and_load_state_goes_on_from_it(load: Callable[..., Any]) -> None:
    model = load("llama")
    adapter = Adapter.attach(model, LORA, seed=5)
    spread(adapter)
    state = adapter.state()
    trained = logits(adapter.model)
    with torch.no_grad():
        for f in adapter.factors().values():
            f.B.zero_()
    assert all(f.B.any() for f in state.values())
    adapter.detach()
    fresh = Adapter.attach(model, LORA, seed=6)
    fresh.load_state(state)
    assert_same(fresh.state(), state)
    assert torch.equal(logits(fresh.model), trained)
    assert all(f.A.requires_grad and f.B.requires_grad for f in fresh.factors().values())


def test_load_state_names_what_does_not_fit(load: Callable[..., Any]) -> None:
    model = load("llama")
    adapter = Adapter.attach(model, LORA, seed=5)
    name = "model.layers.0.self_attn.q_proj"
    state = adapter.state()
    before = adapter.state()
    with pytest.raises(AdapterError, match=f"the given factors lack module {name}"):
        adapter.load_state({n: f for n, f in state.items() if n != name})
    with pytest.raises(AdapterError, match="the model does not adapt module x"):
        adapter.load_state({**state, "x": state[name]})
    wrong = Factors(torch.ones(3, 32), torch.ones(32, 3), 2.0)
    with pytest.raises(AdapterError, match=rf"{name} do not fit: given are rank 3 .*the model has rank 4"):
        adapter.load_state({**state, name: wrong})
    with pytest.raises(AdapterError, match=r"scaling 3, the model has .*scaling 2"):
        adapter.load_state({**state, name: Factors(state[name].A, state[name].B, 3.0)})
    assert_same(adapter.state(), before)


# --- on disk ---


@pytest.mark.parametrize("family", FAMILIES)
def test_stock_peft_loads_what_is_saved(family: str, load: Callable[..., Any], tmp_path: Path) -> None:
    adapter = Adapter.attach(load(family), LORA, seed=5)
    spread(adapter)
    adapter.save(tmp_path / "adapter", base_model="some/model")
    assert sorted(p.name for p in (tmp_path / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    stock = PeftModel.from_pretrained(load(family), tmp_path / "adapter").eval()
    assert torch.equal(logits(stock), logits(adapter.model.eval()))
    assert stock.peft_config["default"].base_model_name_or_path == "some/model"
    assert_same(load_factors(tmp_path / "adapter"), dict(sorted(adapter.state().items())))


def test_saving_twice_gives_the_same_bytes_and_does_not_disturb_training(
    load: Callable[..., Any], tmp_path: Path
) -> None:
    adapter = Adapter.attach(load("llama"), LORA, seed=5)
    adapter.save(tmp_path / "a", base_model="m")
    adapter.save(tmp_path / "b", base_model="m")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert json.loads((tmp_path / "a/adapter_config.json").read_text())["target_modules"] == [
        "q_proj",
        "v_proj",
    ]
    assert not adapter.model.peft_config["default"].inference_mode
    assert all(f.A.requires_grad for f in adapter.factors().values())


def test_an_adapter_that_diverged_is_not_saved(load: Callable[..., Any], tmp_path: Path) -> None:
    adapter = Adapter.attach(load("llama"), LORA, seed=5)
    with torch.no_grad():
        adapter.factors()["model.layers.1.self_attn.v_proj"].B[0, 0] = float("nan")
    with pytest.raises(AdapterError, match=r"layers\.1\.self_attn\.v_proj contain NaN"):
        adapter.save(tmp_path / "adapter", base_model="m")
    assert not (tmp_path / "adapter").exists()


def save_stock(model: Any, folder: Path, **options: Any) -> Any:
    """A folder as PEFT itself writes it, with a B that is not zero; returns the PeftModel."""
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"], **options)
    peft_model = get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in peft_model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    peft_model.save_pretrained(folder, save_embedding_layers=False)
    return peft_model


@pytest.mark.parametrize(
    "options",
    [
        {"r": 4, "lora_alpha": 8},
        {"r": 4, "lora_alpha": 8, "use_rslora": True},
        {"r": 4, "lora_alpha": 8, "rank_pattern": {"v_proj": 2}, "alpha_pattern": {"layers.1.*q_proj": 20}},
        {
            "r": 4,
            "lora_alpha": 8,
            "rank_pattern": {"^model.layers.0.self_attn.q_proj": 3},
            "use_rslora": True,
        },
    ],
    ids=["plain", "rslora", "patterns", "anchored"],
)
def test_load_factors_gives_the_update_that_peft_merges(
    options: dict[str, Any], load: Callable[..., Any], tmp_path: Path
) -> None:
    peft_model = save_stock(load("llama"), tmp_path, **options)
    state = load_factors(tmp_path)
    layers = {n: m for n, m in peft_model.get_base_model().named_modules() if hasattr(m, "get_delta_weight")}
    assert state.keys() == layers.keys()
    for name, layer in layers.items():
        torch.testing.assert_close(state[name].update(), layer.get_delta_weight("default"))


@pytest.fixture
def saved(load: Callable[..., Any], tmp_path: Path) -> Path:
    adapter = Adapter.attach(load("llama"), LORA, seed=5)
    adapter.save(tmp_path / "adapter", base_model="m")
    return tmp_path / "adapter"


def edit_config(folder: Path, **values: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"peft_type": "IA3"}, "an adapter of kind IA3; only LORA"),
        ({"peft_type": None}, "an adapter of kind None"),
        ({"use_dora": True}, "it uses use_dora"),
        ({"bias": "all", "lora_bias": True}, "it uses lora_bias, bias"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights: pissa_niter_4"),
        ({"modules_to_save": ["lm_head"]}, "it uses modules_to_save"),
        ({"r": 8}, r"has rank 4 \(lora_A\) and 4 \(lora_B\) in adapter_model\.safetensors, but .*says 8"),
        ({"r": "four"}, "r 'four' and lora_alpha 8 are not numbers"),
    ],
)
def test_configurations_that_cannot_be_read(values: dict[str, Any], message: str, saved: Path) -> None:
    edit_config(saved, **values)
    with pytest.raises(AdapterError, match=message):
        load_factors(saved)


def edit_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")


KEY = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(KEY.format("B")), r"q_proj has only lora_A"),
        (lambda t: t.clear(), "holds no tensors"),
        (lambda t: t[KEY.format("A")].fill_(float("nan")), r"layers\.0\.self_attn\.q_proj contain NaN"),
        (
            lambda t: t.update({"base_model.model.x.lora_magnitude_vector": torch.ones(3)}),
            "'.*magnitude_vector'",
        ),
        (lambda t: t.update({KEY.format("A"): torch.ones(4, 2, 1, 1)}), "is not a factor of a linear layer"),
    ],
    ids=["half", "empty", "nan", "dora", "conv"],
)
def test_tensors_that_cannot_be_read(change: Callable[[Any], None], message: str, saved: Path) -> None:
    edit_tensors(saved, change)
    with pytest.raises(AdapterError, match=message):
        load_factors(saved)


def test_missing_and_damaged_files(saved: Path) -> None:
    weights, config = saved / "adapter_model.safetensors", saved / "adapter_config.json"
    with pytest.raises(AdapterError, match="not an adapter, there is no such folder"):
        load_factors(saved / "nowhere")
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(AdapterError, match="damaged or not a safetensors file"):
        load_factors(saved)
    weights.unlink()
    with pytest.raises(AdapterError, match=r"the folder has no adapter_model\.safetensors$"):
        load_factors(saved)
    (saved / "adapter_model.bin").touch()
    with pytest.raises(AdapterError, match=r"adapter_model\.bin is a pickle, save it again as safetensors"):
        load_factors(saved)
    config.write_text("{")
    with pytest.raises(AdapterError, match="cannot be read as JSON"):
        load_factors(saved)
    config.write_text("[]")
    with pytest.raises(AdapterError, match="should be a JSON object, is a list"):
        load_factors(saved)
    config.unlink()
    with pytest.raises(AdapterError, match=r"the folder has no adapter_config\.json"):
        load_factors(saved)


def test_half_precision_adapters_are_read_as_float32(saved: Path) -> None:
    full = load_factors(saved)
    edit_tensors(saved, lambda t: t.update({key: tensor.bfloat16() for key, tensor in t.items()}))
    for name, f in load_factors(saved).items():
        assert f.A.dtype == torch.float32
        assert torch.equal(f.A, full[name].A.bfloat16().float())
