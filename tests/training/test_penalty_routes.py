"""The three routes of a penalty's gradient, and its growth, compared with a loop written by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kept_points import Points
from nlora.config.penalty_use import PenaltyUse
from nlora.config.schema import LoraOptions
from nlora.config.train_options import TrainOptions
from nlora.data.task import TokenizedExample
from nlora.methods.registry import build
from nlora.models.backbone import load_backbone
from nlora.models.lora_adapter import AdapterState, LoraAdapter
from nlora.training.result import TrainResult
from nlora.training.trainer import train
from tiny import assert_same

EXAMPLES = [TokenizedExample((*range(20, 30 + i % 5),), (50 + i % 7, 1)) for i in range(12)]
WEIGHT, RATE, LIMIT, EPOCHS = 1e-2, 5e-3, 0.2, 3
OPTIONS = {"batch_size": 12, "epochs": EPOCHS, "learning_rate": RATE, "max_grad_norm": LIMIT}
USES = {
    "loss": ({}, PenaltyUse()),
    "unclipped": ({"clipped": False}, PenaltyUse("unclipped")),
    "decoupled": ({"apply": "decoupled"}, PenaltyUse("decoupled")),
    "decoupled, growing": ({"apply": "decoupled", "growth": 1.0}, PenaltyUse("decoupled", 1.0)),
    "unclipped, growing": ({"clipped": False, "growth": 0.75}, PenaltyUse("unclipped", 0.75)),
}


@pytest.fixture(scope="module")
def fresh(tiny_model: Callable[[str], Path]) -> Callable[[], tuple[Any, LoraAdapter]]:
    """make() -> a backbone and its adapter, always the same."""

    def make() -> tuple[Any, LoraAdapter]:
        backbone: Any = load_backbone(str(tiny_model("llama")))
        return backbone, LoraAdapter.attach(backbone.model, LoraOptions(r=4, alpha=8, dropout=0.0), seed=1)

    return make


def trained(
    fresh: Any, folder: Path, options: Any, points: Points | None = None
) -> tuple[TrainResult, AdapterState]:
    backbone, adapter = fresh()
    method = build("nlora", {"weight": WEIGHT, **options})
    result = train(
        backbone,
        adapter,
        EXAMPLES,
        TrainOptions(**OPTIONS, logging_steps=2),
        penalty=lambda: method.penalty(adapter),
        penalty_use=method.penalty_use,
        seed=5,
        folder=folder,
        points=points,
    )
    return result, adapter.state()


def by_hand(fresh: Any, use: PenaltyUse) -> tuple[AdapterState, list[float]]:
    """Steps over all examples at once, and the penalty of each."""
    _, adapter = fresh()
    factors = adapter.factors()
    parameters = [p for f in factors.values() for p in (f.A, f.B)]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0)
    penalties = []
    for step in range(EPOCHS):
        losses = [
            torch.nn.functional.cross_entropy(
                adapter.model(input_ids=torch.tensor([[*e.prompt_ids, *e.answer_ids]])).logits[0, -3:-1],
                torch.tensor(e.answer_ids),
            )
            for e in EXAMPLES
        ]
        grows = min(1.0, step / (use.growth * EPOCHS)) if use.growth else 1.0
        update = sum((f.scaling * (f.B @ f.A)).abs().sum() for f in factors.values())
        penalty = WEIGHT * grows * update
        loss = sum(losses) / len(losses)
        loss_part, penalty_part = (torch.autograd.grad(x, parameters) for x in (loss, penalty))  # type: ignore
        for p, of_loss, of_penalty in zip(parameters, loss_part, penalty_part, strict=True):
            p.grad = of_loss + of_penalty if use.route == "loss" else of_loss
        torch.nn.utils.clip_grad_norm_(parameters, LIMIT)
        if use.route == "unclipped":
            for p, of_penalty in zip(parameters, penalty_part, strict=True):
                p.grad += of_penalty
        optimizer.step()
        if use.route == "decoupled":
            with torch.no_grad():
                for p, of_penalty in zip(parameters, penalty_part, strict=True):
                    p -= RATE * of_penalty
        penalties.append(penalty.item())
    return adapter.state(), penalties


@pytest.mark.parametrize("name", USES)
def test_a_route_equals_a_loop_written_by_hand(tmp_path: Path, fresh: Any, name: str) -> None:
    options, use = USES[name]
    result, state = trained(fresh, tmp_path, options)
    wanted, penalties = by_hand(fresh, use)
    for module, f in state.items():
        torch.testing.assert_close(f.A, wanted[module].A, rtol=0, atol=2e-5)
        torch.testing.assert_close(f.B, wanted[module].B, rtol=0, atol=2e-5)
    assert result.penalty == pytest.approx(sum(penalties) / EPOCHS, rel=1e-3)
    log = json.loads((tmp_path / "trainer_state.json").read_text())["log_history"]
    logged = {line["step"]: line["penalty"] for line in log if "penalty" in line}
    assert logged == pytest.approx({1: 0.0, 2: penalties[1], 3: penalties[2]}, rel=1e-3)


def test_the_routes_are_not_the_same(tmp_path: Path, fresh: Any) -> None:
    ends = [trained(fresh, tmp_path, options)[1] for options, _ in USES.values()]
    for i, one in enumerate(ends):
        assert not any(all(torch.equal(one[m].B, other[m].B) for m in one) for other in ends[:i])


@pytest.mark.parametrize("name", ["decoupled, growing", "unclipped, growing"])
def test_a_resumed_training_ends_with_the_same_bits(tmp_path: Path, fresh: Any, name: str) -> None:
    kept = tmp_path / "points"
    whole, state = trained(fresh, tmp_path, USES[name][0], Points(kept))
    again, resumed = trained(fresh, tmp_path, USES[name][0], Points(kept, 2))
    assert_same(state, resumed)
    assert again.penalty == whole.penalty > 0


@pytest.mark.parametrize("route", ["unclipped", "decoupled"])
def test_micro_batches_do_not_change_a_route(tmp_path: Path, fresh: Any, route: Any) -> None:
    """With a smooth penalty: |x| has kinks, where rounding decides."""
    ends = [smoothly(fresh, tmp_path, route, micro_batch_size=micro)[1] for micro in (None, 4)]
    for module, f in ends[0].items():
        torch.testing.assert_close(ends[1][module].update(), f.update(), rtol=0, atol=2e-5)
        assert f.update().abs().max() > 1e-3


@pytest.mark.parametrize("route", ["loss", "unclipped", "decoupled"])
def test_the_loss_that_is_logged_holds_the_penalty(tmp_path: Path, fresh: Any, route: Any) -> None:
    """Steps too small to change anything."""
    with_it, without = (
        smoothly(fresh, tmp_path, route, weight, learning_rate=1e-12)[0] for weight in (1e-2, 0)
    )
    assert with_it.penalty > 0.01
    assert with_it.loss - without.loss == pytest.approx(with_it.penalty, rel=1e-4)


def smoothly(
    fresh: Any, folder: Path, route: Any, weight: float = 1e-2, **changes: Any
) -> tuple[TrainResult, AdapterState]:
    """A training with the sum of the squared factors as the penalty."""
    backbone, adapter = fresh()
    result = train(
        backbone,
        adapter,
        EXAMPLES,
        TrainOptions(**{**OPTIONS, **changes}),
        penalty=lambda: weight * sum(p.square().sum() for p in adapter.live_tensors().values()),
        penalty_use=PenaltyUse(route),
        seed=5,
        folder=folder,
    )
    return result, adapter.state()
