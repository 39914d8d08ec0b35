"""Attaching, training and saving an adapter, checked against stock PEFT."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from nlora.config.schema import LoraOptions
from nlora.errors import AdapterError, ModelError
from nlora.models.lora_adapter import LoraAdapter, LoraFactors, load_factors
from tiny import FAMILIES, IDS, LORA, assert_bitwise, assert_same, load, logits, loss, spread, weights

# Stock PEFT uses a property that newer transformers deprecates; nothing here depends on it.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture
def make(tiny_model: Callable[[str], Path]) -> Callable[..., Any]:
    """make(family, dtype=float32) -> a random tiny model, always the same weights."""
    return lambda family, *dtype: load(tiny_model(family), *dtype)


@pytest.mark.parametrize("family", FAMILIES)
def test_attach_and_detach_leave_the_backbone_as_it_was(family: str, make: Callable[..., Any]) -> None:
    model = make(family)
    backbone = weights(model)
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    before = logits(model)
    for _ in range(2):  # a second adapter must attach without a warning
        adapter = LoraAdapter.attach(model, LORA, seed=1)
        assert torch.equal(logits(adapter.model), before), "a fresh adapter must not change the model"
        spread(adapter)
        assert not torch.equal(logits(adapter.model), before)
        assert adapter.detach() is model
    assert_bitwise(model, backbone)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == trainable
    assert torch.equal(logits(model), before)


def test_a_second_adapter_on_the_same_model_is_refused(make: Callable[..., Any]) -> None:
    model = make("llama")
    LoraAdapter.attach(model, LoraOptions(targets=("q_proj",)), seed=1)
    for target in ("q_proj", "o_proj"):
        with pytest.raises(AdapterError, match="has an adapter already"):
            LoraAdapter.attach(model, LoraOptions(targets=(target,)), seed=1)


def test_the_factors_depend_on_the_seed_alone(make: Callable[..., Any]) -> None:
    model = make("llama")
    torch.manual_seed(0)
    first = LoraAdapter.attach(model, LORA, seed=5)
    drawn = torch.rand(3)
    one = first.state()
    first.detach()
    torch.manual_seed(0)
    assert torch.equal(torch.rand(3), drawn), "attaching must draw nothing from the caller's generator"
    second = LoraAdapter.attach(model, LORA, seed=5)
    assert_same(second.state(), one)
    second.detach()
    other = LoraAdapter.attach(model, LORA, seed=6).state()
    assert all(not torch.equal(other[name].A, f.A) for name, f in one.items())


def test_fresh_factors_are_kaiming_and_zero(make: Callable[..., Any]) -> None:
    for f in LoraAdapter.attach(make("llama"), LORA, seed=5).state().values():
        bound = 1 / f.A.shape[1] ** 0.5  # Kaiming uniform with a = sqrt(5)
        assert f.A.abs().max() <= bound
        assert f.A.abs().max() > 0.9 * bound
        assert not f.B.any()
        assert f.scaling == 2.0


def test_factors_stay_float32_over_a_bfloat16_backbone(make: Callable[..., Any]) -> None:
    adapter = LoraAdapter.attach(make("llama", torch.bfloat16), LORA, seed=5)
    assert {f.A.dtype for f in adapter.factors().values()} == {torch.float32}
    assert {f.B.dtype for f in adapter.factors().values()} == {torch.float32}
    loss(adapter.model).backward()
    assert all(f.B.grad is not None and f.B.grad.any() for f in adapter.factors().values())


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
def test_checkpointing_gives_the_same_gradients(family: str, make: Callable[..., Any]) -> None:
    model = make(family).requires_grad_(False)
    grads = []
    for checkpointing in (False, True):
        adapter = LoraAdapter.attach(model, LORA, seed=5)
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
    assert not model.get_input_embeddings()(IDS).requires_grad, "a frozen backbone must stay without a graph"
    for plain, checkpointed in zip(*grads, strict=True):
        torch.testing.assert_close(checkpointed, plain, rtol=1e-3, atol=1e-4 * plain.abs().max().item())


def test_state_is_a_copy_and_load_state_continues_from_it(make: Callable[..., Any]) -> None:
    model = make("llama")
    adapter = LoraAdapter.attach(model, LORA, seed=5)
    spread(adapter)
    state = adapter.state()
    trained = logits(adapter.model)
    with torch.no_grad():
        for f in adapter.factors().values():
            f.B.zero_()
    assert all(f.B.any() for f in state.values())
    adapter.detach()
    fresh = LoraAdapter.attach(model, LORA, seed=6)
    fresh.load_state(state)
    assert_same(fresh.state(), state)
    assert torch.equal(logits(fresh.model), trained)
    assert all(f.A.requires_grad and f.B.requires_grad for f in fresh.factors().values())


def test_load_state_names_what_does_not_fit(make: Callable[..., Any]) -> None:
    model = make("llama")
    adapter = LoraAdapter.attach(model, LORA, seed=5)
    name = "model.layers.0.self_attn.q_proj"
    state = adapter.state()
    before = adapter.state()
    with pytest.raises(AdapterError, match=f"the given factors lack module {name}"):
        adapter.load_state({n: f for n, f in state.items() if n != name})
    with pytest.raises(AdapterError, match="the model does not adapt module x"):
        adapter.load_state({**state, "x": state[name]})
    wrong = LoraFactors(torch.ones(3, 32), torch.ones(32, 3), 2.0)
    with pytest.raises(AdapterError, match=rf"{name} do not fit: they are rank 3 .*but the model has rank 4"):
        adapter.load_state({**state, name: wrong})
    with pytest.raises(AdapterError, match=r"scaling 3, but the model has .*scaling 2"):
        adapter.load_state({**state, name: LoraFactors(state[name].A, state[name].B, 3.0)})
    assert_same(adapter.state(), before)


@pytest.mark.parametrize("family", FAMILIES)
def test_stock_peft_loads_a_saved_adapter(family: str, make: Callable[..., Any], tmp_path: Path) -> None:
    adapter = LoraAdapter.attach(make(family), LORA, seed=5)
    spread(adapter)
    adapter.save(tmp_path / "adapter", base_model="some/model")
    assert sorted(p.name for p in (tmp_path / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    stock = PeftModel.from_pretrained(make(family), tmp_path / "adapter").eval()
    assert torch.equal(logits(stock), logits(adapter.model.eval()))
    assert stock.peft_config["default"].base_model_name_or_path == "some/model"
    assert_same(load_factors(tmp_path / "adapter"), adapter.state())


def test_saving_twice_gives_the_same_bytes_and_does_not_disturb_training(
    make: Callable[..., Any], tmp_path: Path
) -> None:
    adapter = LoraAdapter.attach(make("llama"), LORA, seed=5)
    adapter.save(tmp_path / "a", base_model="m")
    adapter.save(tmp_path / "b", base_model="m")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    config = json.loads((tmp_path / "a/adapter_config.json").read_text())
    assert config["target_modules"] == ["q_proj", "v_proj"]
    assert config["inference_mode"]
    assert not adapter.model.peft_config["default"].inference_mode
    assert all(f.A.requires_grad for f in adapter.factors().values())


def test_an_adapter_that_diverged_is_not_saved(make: Callable[..., Any], tmp_path: Path) -> None:
    adapter = LoraAdapter.attach(make("llama"), LORA, seed=5)
    with torch.no_grad():
        adapter.factors()["model.layers.1.self_attn.v_proj"].B[0, 0] = float("nan")
    with pytest.raises(AdapterError, match=r"layers\.1\.self_attn\.v_proj contain NaN"):
        adapter.save(tmp_path / "adapter", base_model="m")
    assert not (tmp_path / "adapter").exists()


def test_a_layer_that_peft_refuses_is_one_clear_line(tiny_family: Callable[[str], Any]) -> None:
    with pytest.raises(
        ModelError, match=r"^lora\.targets: PEFT cannot .*'out_proj' is incompatible with Mamba"
    ):
        LoraAdapter.attach(tiny_family("mamba"), LoraOptions(targets=("out_proj",)), seed=1)


def test_an_attempt_that_peft_refuses_leaves_the_model_as_it_was(tiny_family: Callable[[str], Any]) -> None:
    """PEFT has adapted some layers of Mamba by the time it meets out_proj."""
    model = tiny_family("mamba")
    before = weights(model)
    trainable = [p.requires_grad for p in model.parameters()]
    with pytest.raises(ModelError, match="PEFT cannot adapt these layers"):
        LoraAdapter.attach(model, LoraOptions(targets=("in_proj", "out_proj")), seed=1)
    assert_bitwise(model, before)
    assert [p.requires_grad for p in model.parameters()] == trainable
    adapter = LoraAdapter.attach(model, LoraOptions(targets=("in_proj",)), seed=1)
    assert len(adapter.factors()) == sum(name.endswith("in_proj.weight") for name in before)
