"""Ways to make several updates one, each against the same thing computed otherwise."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nlora.kernels.largest_magnitude import magmax
from nlora.models.lora_factors import AdapterState, LoraFactors
from nlora.runs.export.combine import CombinedUpdate, dense_update, slerp
from nlora.runs.export.options import MERGES, PRUNING_MERGES


def state(seed: int, names: tuple[str, ...] = ("q", "v"), r: int = 3) -> AdapterState:
    draw = torch.Generator().manual_seed(seed)
    return {
        name: LoraFactors(torch.randn(r, 10, generator=draw), torch.randn(8, r, generator=draw), 1.5)
        for name in names
    }


def test_the_sum_keeps_its_factors() -> None:
    states = [state(1), state(2, r=5), state(3)]
    combined = CombinedUpdate(states)
    found = combined["v"]
    assert isinstance(found, LoraFactors)
    assert found.A.shape == (11, 10)
    assert combined.full_rank() == 8  # of 8 x 10 matrices
    expected = sum(f["v"].scaling * (f["v"].B.numpy() @ f["v"].A.numpy()) for f in states)
    np.testing.assert_allclose(found.update().numpy(), expected, atol=1e-5)


def test_magmax_takes_the_largest_of_every_entry() -> None:
    updates = [s["q"].update() for s in (state(1), state(2), state(3))]
    merged = magmax(updates)
    for i in range(8):
        for j in range(10):
            largest = max((float(u[i, j]) for u in updates), key=abs)
            assert float(merged[i, j]) == largest


def test_slerp_of_two_directions() -> None:
    a, b = torch.zeros(2, 3), torch.zeros(2, 3)
    a[0, 0], b[1, 2] = 3.0, 3.0
    torch.testing.assert_close(slerp([a, b]), (a + b) / 2**0.5)  # halfway on a quarter circle of radius 3
    torch.testing.assert_close(slerp([a, 2 * a]), 1.5 * a)
    torch.testing.assert_close(slerp([a, torch.zeros(2, 3)]), a / 2)
    torch.testing.assert_close(slerp([a]), a)


def test_slerp_of_three_mixes_the_third_in_with_a_third() -> None:
    updates = [s["q"].update() for s in (state(1), state(2), state(3))]

    def between(x: Any, y: Any, t: float) -> Any:
        angle = np.arccos((x * y).sum() / np.linalg.norm(x) / np.linalg.norm(y))
        return (np.sin((1 - t) * angle) * x + np.sin(t * angle) * y) / np.sin(angle)

    first, second, third = (u.double().numpy() for u in updates)
    expected = between(between(first, second, 1 / 2), third, 1 / 3)
    np.testing.assert_allclose(slerp(updates).numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("how", MERGES)
def test_a_module_that_a_task_lacks_counts_as_unchanged(how: str) -> None:
    combined = CombinedUpdate([state(1, ("q",)), state(2, ("q", "v"))], how, density=1.0)
    alone = CombinedUpdate([state(9, ("v",)), state(2, ("q", "v"))], how, density=1.0)
    assert list(combined) == ["q", "v"]
    assert dense_update(combined["v"]).shape == (8, 10)
    if how in ("sum", "magmax", "ties", "magnitude_prune"):
        torch.testing.assert_close(dense_update(combined["v"]), state(2)["v"].update())
    assert not torch.equal(dense_update(combined["v"]), dense_update(alone["v"]))


def test_slerp_takes_the_tasks_in_order_also_where_one_lacks_the_module() -> None:
    one, other = state(1), state(3)
    combined = CombinedUpdate([one, state(2, ("q",)), other], "slerp")
    nothing = torch.zeros(8, 10)
    torch.testing.assert_close(
        dense_update(combined["v"]), slerp([one["v"].update(), nothing, other["v"].update()])
    )
    last = slerp([one["v"].update(), other["v"].update(), nothing])
    assert not torch.allclose(dense_update(combined["v"]), last)


@pytest.mark.parametrize("how", PRUNING_MERGES)
def test_pruning_merges_are_the_same_whenever_they_are_read(how: str) -> None:
    states = [state(1), state(2)]
    combined = CombinedUpdate(states, how, density=0.3, seed=5)
    torch.manual_seed(0)
    first = dense_update(combined["q"])
    before = torch.get_rng_state()
    assert torch.equal(first, dense_update(combined["q"]))
    assert torch.equal(before, torch.get_rng_state()), "the caller's random numbers are left alone"
    assert 0 < int((first == 0).sum()) < first.numel()
    other = dense_update(CombinedUpdate(states, how, density=0.3, seed=6)["q"])
    assert torch.equal(first, other) == (not how.startswith("dare"))


def test_dare_drops_and_rescales() -> None:
    one = state(1)
    merged = dense_update(CombinedUpdate([one], "dare_linear", density=0.5)["q"])
    kept = merged != 0
    torch.testing.assert_close(merged[kept], 2 * one["q"].update()[kept])


def test_density_1_keeps_everything_and_warns_of_nothing() -> None:
    states = [state(1), state(2)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        merged = dense_update(CombinedUpdate(states, "magnitude_prune", density=1.0)["q"])
    torch.testing.assert_close(merged, states[0]["q"].update() + states[1]["q"].update())


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("how", ["ties", "magnitude_prune"])
def test_pefts_own_merge_of_whole_updates_gives_the_same(tiny_model: Any, tmp_path: Path, how: str) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(tiny_model("llama"))
    config = LoraConfig(r=3, lora_alpha=6, target_modules=["q_proj"], init_lora_weights=False)
    model = get_peft_model(base, config, adapter_name="one")
    model.add_adapter("two", config)
    layer = base.model.layers[1].self_attn.q_proj
    name = "model.layers.1.self_attn.q_proj"
    states = [
        {
            name: LoraFactors(
                layer.lora_A[n].weight.detach(), layer.lora_B[n].weight.detach(), layer.scaling[n]
            )
        }
        for n in ("one", "two")
    ]
    model.add_weighted_adapter(["one", "two"], [1.0, 1.0], "both", f"{how}_svd", svd_rank=32, density=0.4)
    expected = layer.get_delta_weight("both")
    found = dense_update(CombinedUpdate(states, how, density=0.4)[name])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
