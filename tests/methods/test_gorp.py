"""GORP: which part of a gradient is removed, which directions a task adds, and that micro-batches change neither."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from helpers import learn, write_config
from nlora.errors import RunError
from nlora.methods.gorp import Gorp
from nlora.methods.registry import build
from nlora.models.lora_adapter import LoraAdapter
from nlora.training.penalized_trainer import PenalizedTrainer
from tiny import LORA, load, loss, spread

TinyModel = Callable[[str], Path]
SIDES = ["rank", "input"]


@pytest.fixture
def adapter(tiny_model: TinyModel) -> LoraAdapter:
    adapter = LoraAdapter.attach(load(tiny_model("llama")), LORA, seed=1)
    spread(adapter)
    return adapter


def orthonormal_rows(count: int, n: int, seed: int = 1) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(n, count, generator=draw))[0].mT


def begun(adapter: LoraAdapter, rows: torch.Tensor, **options: Any) -> Gorp:
    method = build("gorp", options)
    assert isinstance(method, Gorp)
    method.restore(dict.fromkeys(adapter.factors(), rows))
    method.begin_task(adapter, [adapter.state()])
    return method


def gradients(adapter: LoraAdapter) -> dict[str, torch.Tensor]:
    adapter.model.zero_grad()
    loss(adapter.model).backward()
    return {name: f.A.grad.clone() for name, f in adapter.factors().items() if f.A.grad is not None}


@pytest.mark.parametrize("side", SIDES)
def test_a_gradient_loses_its_part_along_the_earlier_directions_and_nothing_else(
    adapter: LoraAdapter, side: str
) -> None:
    plain, rows = gradients(adapter), orthonormal_rows(2, 4 if side == "rank" else 32)
    begun(adapter, rows, side=side)
    b_before = {name: f.B.grad.clone() for name, f in adapter.factors().items() if f.B.grad is not None}
    projected = gradients(adapter)
    for name, f in adapter.factors().items():
        along = rows @ projected[name] if side == "rank" else projected[name] @ rows.mT
        removed = plain[name] - projected[name]
        kept_space = torch.eye(rows.shape[1]) - rows.mT @ rows
        outside = kept_space @ removed if side == "rank" else removed @ kept_space
        assert float(along.abs().max()) < 1e-6
        assert float(outside.abs().max()) < 1e-6
        assert removed.any()
        assert f.B.grad is not None
        assert torch.equal(f.B.grad, b_before[name])


def test_with_all_directions_taken_nothing_is_left(adapter: LoraAdapter) -> None:
    """AdamW would make whole steps out of what rounding leaves of a projection."""
    begun(adapter, orthonormal_rows(4, 4))
    for gradient in gradients(adapter).values():
        assert not gradient.any()


def test_the_projection_of_a_sum_is_the_sum_of_the_projections(adapter: LoraAdapter) -> None:
    """So it does not matter that the hook runs before micro-batches are added up and processes averaged."""
    begun(adapter, orthonormal_rows(2, 32), side="input")
    once = gradients(adapter)
    adapter.model.zero_grad()
    for _ in range(2):
        (loss(adapter.model) / 2).backward()
    for name, f in adapter.factors().items():
        torch.testing.assert_close(f.A.grad, once[name])


@pytest.mark.parametrize("side", SIDES)
def test_a_task_adds_the_leading_directions_of_adams_last_mean(adapter: LoraAdapter, side: str) -> None:
    """By their definition: the fewest singular vectors with 90 % of the squared norm, outside the earlier ones."""
    n = 4 if side == "rank" else 32
    rows = orthonormal_rows(1, n)
    method = begun(adapter, rows, side=side)
    optimizer = torch.optim.AdamW([p for p in adapter.model.parameters() if p.requires_grad], lr=1e-2)
    means = {name: torch.zeros_like(f.A) for name, f in adapter.factors().items()}
    for step in range(1, 4):
        for name, gradient in gradients(adapter).items():
            means[name] = 0.9 * means[name] + 0.1 * gradient
        optimizer.step()
        method.after_step(adapter, step=step, steps=3, learning_rate=1e-2, optimizer=optimizer)
    memory = method.end_task(adapter.model, list(means), [], 0)
    for name, found in memory.items():
        M = means[name] if side == "rank" else means[name].mT  # (n, m)
        rest = M - rows.mT @ (rows @ M)
        U, S, _ = torch.linalg.svd(rest, full_matrices=False)
        wanted = rows
        for column in U.mT:
            if float((wanted @ M).square().sum() / M.square().sum()) >= 0.9:
                break
            wanted = torch.cat([wanted, column[None]])
        assert S[0] > 0
        assert len(found) == len(wanted)
        torch.testing.assert_close(found.mT @ found, wanted.mT @ wanted, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(found @ found.mT, torch.eye(len(found)))


def test_the_first_task_and_a_task_after_one_without_gradients_are_free(adapter: LoraAdapter) -> None:
    plain = gradients(adapter)
    method = build("gorp", {})
    method.restore(dict.fromkeys(adapter.factors(), orthonormal_rows(2, 4)))
    method.begin_task(adapter, [])
    assert all(torch.equal(g, plain[name]) for name, g in gradients(adapter).items())
    method.restore(method.end_task(adapter.model, list(plain), [], 0))
    method.begin_task(adapter, [adapter.state()])
    assert all(torch.equal(g, plain[name]) for name, g in gradients(adapter).items())


def test_a_task_with_threshold_zero_passes_on_the_directions_of_those_before(adapter: LoraAdapter) -> None:
    rows = orthonormal_rows(2, 4)
    method = begun(adapter, rows, threshold=0)
    optimizer = torch.optim.AdamW([p for p in adapter.model.parameters() if p.requires_grad], lr=1e-2)
    gradients(adapter)
    optimizer.step()
    method.after_step(adapter, step=1, steps=1, learning_rate=1e-2, optimizer=optimizer)
    memory = method.end_task(adapter.model, list(adapter.factors()), [], 0)
    assert memory.keys() == adapter.factors().keys()
    for kept in memory.values():
        torch.testing.assert_close(kept, rows)


def test_the_next_stage_does_not_keep_the_hooks_of_the_last(adapter: LoraAdapter) -> None:
    plain = gradients(adapter)
    method = begun(adapter, orthonormal_rows(2, 4))
    method.begin_task(adapter, [])
    assert all(torch.equal(g, plain[name]) for name, g in gradients(adapter).items())


def test_a_lost_memory_is_said(adapter: LoraAdapter) -> None:
    with pytest.raises(
        RunError, match=r"gorp has no gradients of earlier tasks for .*; run the earlier stages again"
    ):
        build("gorp", {}).begin_task(adapter, [adapter.state()])


def test_a_run_remembers_the_mean_that_its_optimizer_ended_with(
    tmp_path: Path, tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With micro-batches and clipping, which the mean is after. The second task's gradients have no part along it."""
    last: list[dict[str, torch.Tensor]] = []
    original = PenalizedTrainer.learn

    def learned(self: PenalizedTrainer) -> float:
        value = original(self)
        state = self.optimizer.state
        named = {n.split(".lora_A")[0]: p for n, p in self.model.named_parameters() if "lora_A" in n}
        last.append(
            {n.removeprefix("base_model.model."): state[p]["exp_avg"].clone() for n, p in named.items()}
        )
        return value

    monkeypatch.setattr(PenalizedTrainer, "learn", learned)
    train = {
        "epochs": 2,
        "batch_size": 8,
        "micro_batch_size": 4,
        "learning_rate": 2e-2,
        "max_grad_norm": 0.01,
    }
    learn(write_config(tmp_path, tiny_model("llama"), method={"name": "gorp", "side": "input"}, train=train))
    memory = load_file(tmp_path / "run/outputs/2-animals/memory.safetensors")
    first, second = last
    for name, rows in memory.items():
        U, S, Vt = torch.linalg.svd(first[name], full_matrices=False)
        k = int(((S.square().cumsum(0) / S.square().sum()) < 0.9).sum()) + 1
        own = rows[:k]
        torch.testing.assert_close(own.mT @ own, Vt[:k].mT @ Vt[:k], rtol=1e-3, atol=1e-4)
        assert float((second[name] @ own.mT).norm()) < 1e-5 * float(second[name].norm())
        assert U.shape == (4, 4)
