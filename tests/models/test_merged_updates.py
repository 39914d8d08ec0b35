"""Merged weights compared with stock PEFT with all adapters active, and with float64 arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import nn

from nlora.errors import AdapterError, ModelError
from nlora.models.lora_adapter import AdapterState, LoraAdapter, LoraFactors, target_modules
from nlora.models.merged_updates import MergedUpdates
from nlora.runs.update_history import keep_updates
from tiny import LORA, assert_bitwise, load, logits, spread, weights

# Stock PEFT uses a property that newer transformers deprecates; nothing here depends on it.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture
def make(tiny_model: Callable[[str], Path]) -> Callable[..., Any]:
    """make(family, dtype=float32) -> a random tiny model, always the same weights."""
    return lambda family, *dtype: load(tiny_model(family), *dtype)


def random_state(model: Any, seed: int, size: float = 0.1) -> AdapterState:
    generator = torch.Generator().manual_seed(seed)
    return {
        m.name: LoraFactors(
            torch.randn(4, m.in_features, generator=generator) * size,
            torch.randn(m.out_features, 4, generator=generator) * size,
            2.0,
        )
        for m in target_modules(model, LORA)
    }


def merged(model: Any) -> MergedUpdates:
    return MergedUpdates(model, [m.name for m in target_modules(model, LORA)])


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "t5"])
def test_merging_two_equals_stock_peft_with_both_active(
    family: str, make: Callable[..., Any], tmp_path: Path
) -> None:
    model = make(
        family, torch.float64
    )  # so that only the formula can differ, not the rounding of activations
    states = [random_state(model, seed) for seed in (1, 2)]
    for name, state in zip("ab", states, strict=True):
        adapter = LoraAdapter.attach(model, LORA, seed=0)
        adapter.load_state(state)
        adapter.save(tmp_path / name, base_model="m")
        adapter.detach()
    stock = PeftModel.from_pretrained(make(family, torch.float64), tmp_path / "a", adapter_name="a")
    stock.load_adapter(tmp_path / "b", adapter_name="b")
    stock.base_model.set_adapter(["a", "b"])
    before = logits(model)
    merged(model).activate(states)
    wanted = logits(stock.eval())
    assert (wanted - before).abs().max() > 1e-2, "the adapters must matter"
    torch.testing.assert_close(logits(model), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_deactivating_is_bit_exact(family: str, dtype: torch.dtype, make: Callable[..., Any]) -> None:
    model = make(family, dtype)
    before = weights(model)
    backbone = merged(model)
    backbone.activate([random_state(model, 1), random_state(model, 2)])
    changed = [name for name, tensor in weights(model).items() if not torch.equal(tensor, before[name])]
    assert len(changed) == len(target_modules(model, LORA))
    backbone.deactivate()
    assert_bitwise(model, before)


def test_the_result_does_not_depend_on_earlier_merges(make: Callable[..., Any]) -> None:
    model = make("llama", torch.bfloat16)
    a, b, c = (random_state(model, seed) for seed in (1, 2, 3))
    fresh = make("llama", torch.bfloat16)
    merged(fresh).activate([a, b])
    backbone = merged(model)
    backbone.activate([c])
    backbone.activate([a])
    backbone.activate([a, b])
    assert_bitwise(model, weights(fresh))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_sum_is_rounded_once(family: str, dtype: torch.dtype, make: Callable[..., Any]) -> None:
    """Compared with a float64 sum rounded once; adding task after task would change some last bits."""
    model = make(family, dtype)
    states = [random_state(model, seed, size=0.03) for seed in range(12)]
    originals = weights(model)
    merged(model).activate(states)
    step_by_step_differs = False
    for name in states[0]:
        original = originals[f"{name}.weight"]
        updates = [s[name].scaling * s[name].B.double() @ s[name].A.double() for s in states]
        if family == "gpt2":
            updates = [u.T for u in updates]
        wanted = (original.double() + sum(updates)).to(dtype)
        got = model.get_submodule(name).weight
        # float32 sums round differently from float64 if the value is halfway between two neighbors.
        assert (got != wanted).float().mean() < 0.002
        torch.testing.assert_close(got.float(), wanted.float(), rtol=torch.finfo(dtype).eps, atol=1e-6)
        steps = original.clone()
        for update in updates:
            steps = (steps.float() + update.float()).to(dtype)
        step_by_step_differs |= bool((steps != wanted).float().mean() > 0.1)
    assert step_by_step_differs, "the test must tell the two apart"


def test_merging_under_an_attached_adapter(make: Callable[..., Any]) -> None:
    """The same modules are changed, whether or not the adapter wraps them, and the adapter itself stays."""
    model = make("llama")
    state, earlier = random_state(model, 1), random_state(model, 2)
    reference = make("llama")
    merged(reference).activate([earlier, state])
    backbone = merged(model)
    adapter = LoraAdapter.attach(model, LORA, seed=0)
    adapter.load_state(state)
    backbone.activate([earlier])
    torch.testing.assert_close(logits(adapter.model.eval()), logits(reference), rtol=1e-4, atol=1e-4)
    while_attached = MergedUpdates(model, list(state))
    while_attached.activate([])
    adapter.detach()
    backbone.deactivate()
    assert_bitwise(model, weights(make("llama")))


def test_a_state_may_cover_only_some_modules(make: Callable[..., Any]) -> None:
    model = make("llama")
    before = weights(model)
    name = "model.layers.1.self_attn.v_proj"
    state = {name: random_state(model, 1)[name]}
    merged(model).activate([state])
    for key, tensor in weights(model).items():
        assert torch.equal(tensor, before[key]) == (key != f"{name}.weight")


def test_merging_leaves_no_gradient(make: Callable[..., Any]) -> None:
    model = make("llama")
    adapter = LoraAdapter.attach(model, LORA, seed=0)
    live = adapter.factors()
    adapter.detach()
    merged(model).activate([live])
    assert not any(p.grad_fn for p in model.parameters())
    assert model.get_submodule("model.layers.0.self_attn.q_proj").weight.is_leaf


def test_a_state_that_does_not_fit_changes_nothing(make: Callable[..., Any]) -> None:
    model = make("llama")
    before = weights(model)
    backbone = merged(model)
    good = random_state(model, 1)
    name = "model.layers.0.self_attn.v_proj"
    with pytest.raises(AdapterError, match=r"updates model\.lm_head, which the model does not have"):
        backbone.activate([good, {"model.lm_head": good[name]}])
    with pytest.raises(
        AdapterError, match=rf"update of {name} is 32x32, but the layer is 16x32 \(out x in\)"
    ):
        backbone.activate([good, {name: LoraFactors(torch.ones(4, 32), torch.ones(32, 4), 1.0)}])
    assert_bitwise(model, before)


def test_quantized_and_other_modules_are_refused() -> None:
    model = nn.ModuleDict({"linear": nn.Linear(4, 4), "norm": nn.LayerNorm(4)})
    with pytest.raises(
        ModelError, match="norm is a LayerNorm; updates can be merged into linear layers only"
    ):
        MergedUpdates(model, ["norm"])
    model["linear"].weight = nn.Parameter(torch.zeros(4, 4, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ModelError, match=r"linear is quantized \(Linear, torch\.int8\)"):
        MergedUpdates(model, ["linear"])


@pytest.mark.parametrize("family", ["zamba", "zamba2"])
def test_layers_that_share_a_weight_keep_their_own_updates(
    family: str, tiny_family: Callable[[str], Any], tmp_path: Path
) -> None:
    """Merged into their one weight, every layer would get all of the updates."""
    targets = {"zamba": ("q_proj", "v_proj", "o_proj", "down_proj"),
               "zamba2": ("q_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj")}[family]  # fmt: skip
    lora = LORA.model_copy(update={"targets": targets})
    model = tiny_family(family).double()
    before = logits(model)
    adapter = LoraAdapter.attach(model, lora, seed=0)
    states = []
    for seed, name in enumerate("ab"):
        spread(adapter, seed)
        adapter.save(tmp_path / name, base_model="m")
        states.append(adapter.state())
    model = adapter.detach()
    keep_updates(model, list(states[0])).activate(states)
    stock = PeftModel.from_pretrained(tiny_family(family).double(), tmp_path / "a", adapter_name="a")
    stock.load_adapter(tmp_path / "b", adapter_name="b")
    stock.base_model.set_adapter(["a", "b"])
    expected = logits(stock.eval())
    change = float((expected - before).abs().max())
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-5 * change)
    with pytest.raises(ModelError, match="shares its weight with another layer"):
        MergedUpdates(model, list(states[0]))


def test_a_layer_in_two_places_is_refused(make: Callable[..., Any]) -> None:
    model = make("llama")
    model.model.layers[1].self_attn.q_proj = model.model.layers[0].self_attn.q_proj
    with pytest.raises(
        ModelError, match=r"layers\.0\.self_attn\.q_proj is the same layer as .*layers\.1\.self_attn"
    ):
        target_modules(model, LORA)
