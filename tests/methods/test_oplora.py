"""OPLoRA: what it keeps of the weights, and that its steps are those of projected factors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nlora.methods.registry import build
from nlora.models.lora_adapter import LoraAdapter, ModuleShape, target_modules
from nlora.models.merged_updates import MergedUpdates
from nlora.models.unmerged_updates import UnmergedUpdates, effective_weight
from states import random_state
from tiny import IDS, LORA, load

TinyModel = Callable[[str], Path]
RATE = 1e-2


def optimizer_of(adapter: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(adapter.live_tensors().values(), lr=RATE, weight_decay=0.1)


def learn_steps(method: Any, adapter: Any, steps: int = 4) -> None:
    """As the trainer does: clipped AdamW steps, each followed by the hook."""
    optimizer = optimizer_of(adapter)
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        adapter.model(input_ids=IDS, labels=IDS).loss.backward()
        torch.nn.utils.clip_grad_norm_(adapter.live_tensors().values(), 0.1)
        optimizer.step()
        method.after_step(adapter, step=step, steps=steps, learning_rate=RATE, optimizer=optimizer)


@pytest.mark.parametrize("family", ["llama", "gpt2"])  # v of llama is 16 x 32, gpt2's Conv1D is 96 x 32
@pytest.mark.parametrize("options", [{}, {"k": 15}])
def test_the_leading_singular_triples_are_those_of_before(
    tiny_model: TinyModel, family: str, options: dict[str, Any]
) -> None:
    model = load(tiny_model(family))
    before = {m.name: effective_weight(model, m.name) for m in target_modules(model, LORA)}
    method = build("oplora", options)
    adapter = method.attach(model, LORA, stage=1, seed=1)
    method.begin_task(adapter, [])
    learn_steps(method, adapter)
    for name, f in adapter.factors().items():
        W, update = before[name], f.update().detach()
        k = options.get("k", min(W.shape) // 4)
        U, S, Vh = torch.linalg.svd(W)
        assert update.abs().max() > 1e-3
        torch.testing.assert_close(U[:, :k].mT @ update, torch.zeros(k, W.shape[1]), rtol=0, atol=1e-5)
        torch.testing.assert_close(update @ Vh[:k].mT, torch.zeros(W.shape[0], k), rtol=0, atol=1e-5)
        # A small part of the update, which brings no larger triples of its own.
        U_after, S_after, Vh_after = torch.linalg.svd(W + 0.01 * update)
        torch.testing.assert_close(S_after[:k], S[:k], rtol=1e-4, atol=1e-5)
        outer, outer_after = (
            u[:, :k] * s[:k] @ v[:k] for u, s, v in ((U, S, Vh), (U_after, S_after, Vh_after))
        )
        torch.testing.assert_close(outer_after, outer, rtol=0, atol=2e-3 * float(S[0]))


def test_its_steps_are_those_of_adamw_on_unprojected_factors(tiny_model: TinyModel) -> None:
    """W + s·(I - UUᵀ)·B·A·(I - VVᵀ) as the paper writes it, computed by torch alone."""
    method = build("oplora", {"k": 6})
    adapter = method.attach(load(tiny_model("llama")), LORA, stage=1, seed=1)
    learn_steps(method, adapter)

    model = load(tiny_model("llama"))
    plain = LoraAdapter.attach(model, LORA, seed=1)
    factors = plain.factors()
    free = {
        n: (f.A.detach().clone().requires_grad_(), f.B.detach().clone().requires_grad_())
        for n, f in factors.items()
    }
    projected = {}
    for name in factors:
        U, _, Vh = torch.linalg.svd(effective_weight(model, name))
        projected[name] = torch.eye(len(U)) - U[:, :6] @ U[:, :6].mT, torch.eye(len(Vh)) - Vh[:6].mT @ Vh[:6]
    backbone = plain.detach()
    parameters = [p for pair in free.values() for p in pair]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.1)

    def update(name: str) -> torch.Tensor:
        (A, B), (left, right) = free[name], projected[name]
        return factors[name].scaling * left @ B @ A @ right

    for _ in range(4):
        optimizer.zero_grad()
        changed = {f"{n}.weight": backbone.get_submodule(n).weight.detach() + update(n) for n in free}
        torch.func.functional_call(
            backbone, changed, kwargs={"input_ids": IDS, "labels": IDS}
        ).loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 0.1)
        optimizer.step()
    for name, f in adapter.factors().items():
        torch.testing.assert_close(f.update(), update(name), rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("kind", "dtype"), [(MergedUpdates, torch.float32), (UnmergedUpdates, torch.bfloat16)]
)
def test_earlier_updates_are_part_of_what_is_kept(
    tiny_model: TinyModel, kind: Any, dtype: torch.dtype
) -> None:
    """Merged or not. The directions are those of W + ΔW, and not of W."""
    model = load(tiny_model("llama"), dtype)
    shapes = {m.name: (m.out_features, m.in_features) for m in target_modules(model, LORA)}
    earlier = random_state(shapes, r=3, seed=5)
    whole = {n: model.get_submodule(n).weight.detach().float() + f.update() for n, f in earlier.items()}
    kind(model, list(shapes)).activate([earlier])
    method = build("oplora", {"k": 5})
    adapter = method.attach(model, LORA, stage=2, seed=1)
    for name, f in adapter.factors().items():
        Vh = torch.linalg.svd(whole[name]).Vh
        torch.testing.assert_close(f.A @ Vh[:5].mT, torch.zeros(4, 5), rtol=0, atol=1e-5)
        assert (f.A @ Vh[5:10].mT).abs().max() > 0.01


def test_a_layer_needs_a_direction_to_learn_in() -> None:
    modules = [ModuleShape("q_proj", 32, 32, 4), ModuleShape("v_proj", 32, 16, 4)]
    (problem,) = build("oplora", {"k": 16}).check(modules)
    assert str(problem).endswith(
        "method.k: v_proj has 16 singular directions, and k 16 leaves none to learn in; use at most 15"
    )
    assert build("oplora", {"k": 15}).check(modules) == build("oplora", {"share": 0.99}).check(modules) == []
