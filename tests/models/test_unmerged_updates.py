"""Unmerged updates compute what merged ones do, and leave nothing on the model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nlora.config.schema import LoraOptions
from nlora.errors import AdapterError, ModelError
from nlora.models.lora_adapter import AdapterState, LoraAdapter, LoraFactors, target_modules
from nlora.models.merged_updates import MergedUpdates
from nlora.models.unmerged_updates import UnmergedUpdates
from nlora.runs.update_history import keep_updates
from nlora.training.fast_modules import fast_modules
from tiny import LORA, assert_bitwise, load, logits, loss, spread, weights

EVERY_LINEAR = LoraOptions(r=4, alpha=8, dropout=0.0, targets=("q_proj", "v_proj", "gate_proj", "down_proj"))
Make = Callable[..., Any]


@pytest.fixture
def make(tiny_model: Callable[[str], Path]) -> Make:
    """make(family, dtype=float32) -> a random tiny model, always the same weights."""
    return lambda family, *dtype: load(tiny_model(family), *dtype)


def names(model: Any, lora: LoraOptions = LORA) -> list[str]:
    return [m.name for m in target_modules(model, lora)]


def random_state(model: Any, seed: int, lora: LoraOptions = LORA) -> AdapterState:
    generator = torch.Generator().manual_seed(seed)
    return {
        m.name: LoraFactors(
            torch.randn(4, m.in_features, generator=generator) * 0.1,
            torch.randn(m.out_features, 4, generator=generator) * 0.1,
            2.0,
        )
        for m in target_modules(model, lora)
    }


def gradients(model: Any, lora: LoraOptions = LORA) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss with an adapter that is not zero on top, and the gradients of its factors."""
    adapter = LoraAdapter.attach(model, lora, seed=1)
    spread(adapter)
    value = loss(adapter.model.eval())
    value.backward()
    found = {f"{n}.{key}": getattr(f, key).grad for n, f in adapter.factors().items() for key in "AB"}
    adapter.detach()
    return value.item(), found


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
def test_unmerged_updates_compute_what_merged_ones_do(family: str, make: Make) -> None:
    # In float64, so that only the formula can differ, not the rounding of activations.
    model, other = make(family, torch.float64), make(family, torch.float64)
    states = [random_state(model, seed) for seed in (1, 2, 3)]
    before = logits(model)
    UnmergedUpdates(model, names(model)).activate(states)
    MergedUpdates(other, names(other)).activate(states)
    assert (logits(other) - before).abs().max() > 1e-2, "the updates must matter"
    torch.testing.assert_close(logits(model), logits(other), rtol=1e-5, atol=1e-5)
    (ours, mine), (theirs, wanted) = gradients(model), gradients(other)
    assert ours == pytest.approx(theirs, rel=1e-5)
    assert mine.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert gradient.abs().max() > 0
        torch.testing.assert_close(
            mine[name], gradient, rtol=1e-5, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_one_hook_of_summed_rank_per_module_whatever_came_before(make: Make) -> None:
    model = make("llama")
    a, b, c = (random_state(model, seed) for seed in (1, 2, 3))
    fresh = make("llama")
    UnmergedUpdates(fresh, names(fresh)).activate([a, b])
    unmerged = UnmergedUpdates(model, names(model))
    for states in ([c], [a, b, c], [a, b]):
        unmerged.activate(states)
    assert torch.equal(logits(model), logits(fresh))
    for name in names(model):
        (hook,) = model.get_submodule(name)._forward_hooks.values()
        assert [len(matrix) for matrix in hook.matrices(torch.ones(1))] == [8, len(states[0][name].B)]


def test_deactivating_leaves_no_hook_and_no_changed_weight(make: Make) -> None:
    model = make("llama")
    before, wanted = weights(model), logits(model)
    unmerged = UnmergedUpdates(model, names(model))
    unmerged.activate([random_state(model, 1)])
    assert_bitwise(model, before)
    assert not torch.equal(logits(model), wanted)
    unmerged.deactivate()
    assert torch.equal(logits(model), wanted)
    assert not any(module._forward_hooks for module in model.modules())


def test_a_state_may_cover_only_some_modules(make: Make) -> None:
    model, other = make("llama"), make("llama")
    name = "model.layers.1.self_attn.v_proj"
    some = [{name: random_state(model, 1)[name]}, random_state(model, 2)]
    UnmergedUpdates(model, names(model)).activate(some)
    MergedUpdates(other, names(other)).activate(some)
    torch.testing.assert_close(logits(model), logits(other), rtol=1e-5, atol=1e-5)


def test_under_an_attached_adapter_and_with_it_switched_off(make: Make) -> None:
    model, other = make("llama"), make("llama")
    earlier = random_state(model, 2)
    unmerged = UnmergedUpdates(model, names(model))
    MergedUpdates(other, names(other)).activate([earlier])
    before = logits(other)
    adapter, merged = (LoraAdapter.attach(m, LORA, seed=1) for m in (model, other))
    for one in (adapter, merged):
        spread(one)
    unmerged.activate([earlier])
    torch.testing.assert_close(
        logits(adapter.model.eval()), logits(merged.model.eval()), rtol=1e-5, atol=1e-5
    )
    with adapter.without():
        torch.testing.assert_close(logits(adapter.model), before, rtol=1e-5, atol=1e-5)
    while_attached = UnmergedUpdates(
        adapter.model.get_base_model(), list(earlier)
    )  # finds the layers inside the adapter
    while_attached.deactivate()
    adapter.detach()
    torch.testing.assert_close(logits(model), before, rtol=1e-5, atol=1e-5)


def test_replaced_modules_still_add_the_updates(make: Make) -> None:
    """Gated layers are replaced on a CPU, and their linear layers may have updates."""
    model, other = make("llama"), make("llama")
    states = [random_state(model, 1, EVERY_LINEAR)]
    UnmergedUpdates(model, names(model, EVERY_LINEAR)).activate(states)
    MergedUpdates(other, names(other, EVERY_LINEAR)).activate(states)
    adapter = LoraAdapter.attach(model, EVERY_LINEAR, seed=1)
    spread(adapter)
    with fast_modules(adapter.model):
        assert any(type(m).__name__ == "GatedLayer" for m in adapter.model.modules())
        value = loss(adapter.model)
        value.backward()
        found = {n: f.B.grad for n, f in adapter.factors().items()}
    adapter.detach()
    wanted, expected = gradients(other, EVERY_LINEAR)
    assert value.item() == pytest.approx(wanted, rel=1e-5)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[f"{name}.B"], rtol=1e-4, atol=1e-5)


def test_scoring_first_leaves_updates_that_training_can_use(make: Make) -> None:
    """In bfloat16, the factors are cast at their first use, which may be in inference mode during scoring."""
    model = make("llama", torch.bfloat16)
    UnmergedUpdates(model, names(model)).activate([random_state(model, 1)])
    with torch.inference_mode():
        model(input_ids=torch.tensor([[5, 6]]))
    _, found = gradients(model)
    assert all(gradient.isfinite().all() for gradient in found.values())


def test_live_factors_leave_no_gradient(make: Make) -> None:
    model = make("llama").requires_grad_(False)
    adapter = LoraAdapter.attach(model, LORA, seed=0)
    live = adapter.factors()
    adapter.detach()
    UnmergedUpdates(model, names(model)).activate([live])
    assert model(input_ids=torch.tensor([[5, 6]])).logits.grad_fn is None


def test_a_state_that_does_not_fit_changes_nothing(make: Make) -> None:
    model = make("llama")
    wanted = logits(model)
    good = random_state(model, 1)
    name = "model.layers.0.self_attn.v_proj"
    unmerged = UnmergedUpdates(model, names(model))
    with pytest.raises(AdapterError, match=r"updates model\.lm_head, which the model does not have"):
        unmerged.activate([good, {"model.lm_head": good[name]}])
    with pytest.raises(AdapterError, match=rf"update of {name} is 32x32, but the layer is 16x32"):
        unmerged.activate([{name: LoraFactors(torch.ones(4, 32), torch.ones(32, 4), 1.0)}])
    assert torch.equal(logits(model), wanted)
    with pytest.raises(ModelError, match="norm is a LlamaRMSNorm"):
        UnmergedUpdates(model, ["model.norm"])


def test_ranks_that_would_cost_more_than_the_layer_become_one_matrix(make: Make) -> None:
    model, other = make("llama", torch.float64), make("llama", torch.float64)
    states = [
        random_state(model, seed) for seed in range(4)
    ]  # 16 · (32 + 32) = 32 · 32, 16 · (32 + 16) > 32 · 16
    UnmergedUpdates(model, names(model)).activate(states)
    MergedUpdates(other, names(other)).activate(states)
    for name in names(model):
        (hook,) = model.get_submodule(name)._forward_hooks.values()
        assert [m.shape for m in hook.matrices(torch.ones(1))] == [model.get_submodule(name).weight.shape]
    torch.testing.assert_close(logits(model), logits(other), rtol=1e-5, atol=1e-5)
    (_, mine), (_, wanted) = gradients(model), gradients(other)
    for name, gradient in wanted.items():
        torch.testing.assert_close(mine[name], gradient, rtol=1e-5, atol=1e-5)


def test_a_bfloat16_backbone_keeps_updates_that_its_weights_would_round_away(make: Make) -> None:
    """An update of 1/1000 of a weight's size is lost in a bfloat16 weight; unmerged, it keeps 8 bits."""
    model = make("llama", torch.bfloat16)
    name = "model.layers.0.self_attn.q_proj"
    layer: Any = model.get_submodule(name)
    layer.weight.data.copy_(torch.randn(32, 32, generator=torch.Generator().manual_seed(0)))
    f = random_state(model, 1)[name]
    update = f.scaling * f.B @ f.A
    factors = LoraFactors(f.A * 1e-3 * layer.weight.abs().min() / update.abs().max(), f.B, f.scaling)
    wanted = factors.scaling * factors.B @ factors.A
    eye, before = torch.eye(32, dtype=torch.bfloat16), layer.weight.clone()

    MergedUpdates(model, [name]).activate([{name: factors}])
    assert torch.equal(layer.weight, before)
    kept = keep_updates(model, [name])
    kept.activate([{name: factors}])
    layer.weight.data.zero_()  # leaves the unmerged update only
    assert (layer(eye).T.float() - wanted).norm() < 0.01 * wanted.norm()


def test_updates_are_merged_only_if_the_weights_can_hold_them() -> None:
    model = nn.ModuleDict({"a": nn.Linear(4, 6), "b": nn.Linear(4, 6)})
    assert type(keep_updates(model, ["a", "b"])) is MergedUpdates
    model["b"].to(torch.float64)
    assert type(keep_updates(model, ["a", "b"])) is MergedUpdates
    model["b"].to(torch.bfloat16)
    assert type(keep_updates(model, ["a", "b"])) is UnmergedUpdates
    model["b"].weight = nn.Parameter(torch.zeros(6, 4, dtype=torch.int8), requires_grad=False)
    assert type(keep_updates(model, ["a", "b"])) is UnmergedUpdates
    assert type(keep_updates(model, ["a"])) is MergedUpdates
    # 4-bit codes may be stored as floats, for FSDP; then only the shape tells.
    model["a"].weight = nn.Parameter(torch.zeros(6, 1), requires_grad=False)
    assert type(keep_updates(model, ["a"])) is UnmergedUpdates
