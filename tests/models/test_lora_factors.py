"""Reading stock PEFT folders: the update that PEFT itself would merge, or one clear line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save, save_file

from nlora.errors import AdapterError
from nlora.models.lora_adapter import LoraAdapter, LoraFactors, load_factors
from nlora.models.lora_factors import check_finite, stack
from tiny import LORA, load

# Stock PEFT uses a property that newer transformers deprecates; nothing here depends on it.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture
def make(tiny_model: Callable[[str], Path]) -> Callable[..., Any]:
    """make(family, dtype=float32) -> a random tiny model, always the same weights."""
    return lambda family, *dtype: load(tiny_model(family), *dtype)


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
    options: dict[str, Any], make: Callable[..., Any], tmp_path: Path
) -> None:
    peft_model = save_stock(make("llama"), tmp_path, **options)
    state = load_factors(tmp_path)
    layers = {n: m for n, m in peft_model.get_base_model().named_modules() if hasattr(m, "get_delta_weight")}
    assert state.keys() == layers.keys()
    for name, layer in layers.items():
        torch.testing.assert_close(state[name].update(), layer.get_delta_weight("default"))


@pytest.fixture
def saved(make: Callable[..., Any], tmp_path: Path) -> Path:
    adapter = LoraAdapter.attach(make("llama"), LORA, seed=5)
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
        # From somebody else's hands: internal errors, and one that did not end.
        ({"lora_alpha": 10**400}, r"adapter_config\.json: r 4 and lora_alpha 1000\d+ are not numbers"),
        ({"lora_alpha": float("nan")}, "lora_alpha nan are not numbers"),
        (
            {"rank_pattern": ["x"]},
            r"adapter_config\.json: rank_pattern .* must map names to numbers, not be \['x'\]",
        ),
        ({"rank_pattern": {"(((": 4}}, r"the pattern '\(\(\(' is no regular expression"),
        (
            {"alpha_pattern": {"(a|a|[a-z]|.)*(.*)*X": 4}},
            "may take too long to match; write the names of its layers",
        ),
        (
            {"alpha_pattern": {".*.*.*.*.*.*X": 4}},
            "may take too long to match; write the names of its layers",
        ),
    ],
)
def test_configurations_that_cannot_be_read(values: dict[str, Any], message: str, saved: Path) -> None:
    edit_config(saved, **values)
    with pytest.raises(AdapterError, match=message):
        load_factors(saved)


def test_an_update_beyond_float32_is_refused() -> None:
    """Its factors are finite; the run blamed the first examples that it was trained on."""
    for A, B, scaling in ((1e30, 1e30, 1.0), (1.0, 1.0, 1e39)):
        with pytest.raises(AdapterError, match=r"there: the update of q is beyond the numbers of float32"):
            check_finite({"q": LoraFactors(torch.full((2, 3), A), torch.full((4, 2), B), scaling)}, "there")
    check_finite({"q": LoraFactors(torch.full((2, 3), 1e15), torch.full((4, 2), 1e15), 2.0)}, "there")


def test_a_configuration_that_is_nested_too_deeply(saved: Path) -> None:
    (saved / "adapter_config.json").write_text("[" * 200_000)
    with pytest.raises(AdapterError, match=r"adapter_config\.json: cannot be read as JSON"):
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


def test_stack_is_the_sum_of_updates() -> None:
    generator = torch.Generator().manual_seed(0)
    parts = [
        LoraFactors(torch.randn(r, 7, generator=generator), torch.randn(5, r, generator=generator), scaling)
        for r, scaling in ((1, 2.0), (4, 0.5), (8, -3.0))
    ]
    joint = stack(parts)
    assert joint.A.shape == (13, 7)
    assert joint.shape == (5, 7)
    assert joint.entries == 35
    torch.testing.assert_close(joint.update(), sum(p.scaling * p.B @ p.A for p in parts))


def test_factors_that_were_read_do_not_change_with_their_file(saved: Path) -> None:
    before = load_factors(saved)
    wanted = {name: f.A.clone() for name, f in before.items()}
    zeros = {k: torch.zeros_like(t) for k, t in load_file(saved / "adapter_model.safetensors").items()}
    (saved / "adapter_model.safetensors").write_bytes(save(zeros))
    assert all(torch.equal(f.A, wanted[name]) for name, f in before.items())
