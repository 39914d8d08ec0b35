"""LoRI: what trains and what does not, and that its two parts are those of a loop written by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kept_points import Points
from nlora.config.train_options import TrainOptions
from nlora.data.task import TokenizedExample
from nlora.methods.registry import build
from nlora.models.backbone import load_backbone
from nlora.models.lora_adapter import AdapterState, LoraAdapter
from nlora.training.trainer import train
from tiny import LORA, assert_same

TinyModel = Callable[[str], Path]
EXAMPLES = [TokenizedExample((*range(20, 30 + i % 5),), (50 + i % 7, 1)) for i in range(8)]
STEPS, RATE = 6, 5e-3


def learned(
    model: Path, folder: Path, points: Any = None, **options: Any
) -> tuple[AdapterState, AdapterState]:
    """The factors before and after a stage of six optimizer steps over all examples."""
    backbone: Any = load_backbone(str(model))
    method = build("lori", options)
    adapter: Any = method.attach(backbone.model, LORA, stage=1, seed=1)
    method.begin_task(adapter, [])
    before = adapter.state()
    train(
        backbone,
        adapter,
        EXAMPLES,
        TrainOptions(batch_size=8, epochs=STEPS, learning_rate=RATE),
        penalty=lambda: method.penalty(adapter),
        after_step=lambda **step: method.after_step(adapter, **step),
        seed=5,
        folder=folder,
        points=points,
        stateful={"method": method},  # type: ignore[dict-item]
    )
    return before, adapter.state()


def by_hand(model: Path, steps: int, trains: dict[str, torch.Tensor] | None = None) -> AdapterState:
    """Steps on B alone, from zero; trains: the entries that move."""
    backbone: Any = load_backbone(str(model))
    adapter = LoraAdapter.attach(backbone.model, LORA, seed=1)
    Bs = {name: f.B for name, f in adapter.factors().items()}
    optimizer = torch.optim.AdamW(Bs.values(), lr=RATE, weight_decay=0.0)
    for _ in range(steps):
        losses = [
            torch.nn.functional.cross_entropy(
                adapter.model(input_ids=torch.tensor([[*e.prompt_ids, *e.answer_ids]])).logits[0, -3:-1],
                torch.tensor(e.answer_ids),
            )
            for e in EXAMPLES
        ]
        optimizer.zero_grad()
        (sum(losses) / len(losses)).backward()  # type: ignore[union-attr]
        for name, B in Bs.items():
            assert B.grad is not None
            if trains is not None:
                B.grad[~trains[name].expand_as(B)] = 0
        torch.nn.utils.clip_grad_norm_(Bs.values(), 1.0)
        optimizer.step()
    return adapter.state()


@pytest.mark.parametrize("unit", ["entries", "rows"])
def test_the_choice_is_what_moved_most_and_only_it_trains(
    tmp_path: Path, tiny_model: TinyModel, unit: str
) -> None:
    before, after = learned(tiny_model("llama"), tmp_path, share=0.25, unit=unit, calibration=0.5)
    dense = by_hand(tiny_model("llama"), 3)  # half of the steps
    sizes = {n: f.B.abs() if unit == "entries" else f.B.norm(dim=1, keepdim=True) for n, f in dense.items()}
    every = torch.cat([size.flatten() for size in sizes.values()]).sort(descending=True).values
    chosen = {name: size >= every[len(every) // 4 - 1] for name, size in sizes.items()}
    for name, f in after.items():
        assert torch.equal(f.A, before[name].A)
        assert not f.B[~chosen[name].expand_as(f.B)].any()
        if unit == "rows":
            assert not f.update()[~chosen[name][:, 0]].any()
    moved = sum(int(f.B.count_nonzero()) for f in after.values())
    assert moved == sum(int(chosen[name].expand_as(f.B).sum()) for name, f in after.items())
    again = by_hand(tiny_model("llama"), 3, chosen)  # the other half, with an optimizer of its own
    for name, f in after.items():
        torch.testing.assert_close(f.B, again[name].B, rtol=0, atol=1e-5)


def test_with_all_of_b_it_trains_b_alone_from_the_first_step_on(
    tmp_path: Path, tiny_model: TinyModel
) -> None:
    _, after = learned(tiny_model("llama"), tmp_path, share=1)
    wanted = by_hand(tiny_model("llama"), STEPS)
    for name, f in after.items():
        assert torch.equal(f.A, wanted[name].A)
        torch.testing.assert_close(f.B, wanted[name].B, rtol=0, atol=2e-5)


def test_a_calibration_to_the_end_cuts_b_down(tmp_path: Path, tiny_model: TinyModel) -> None:
    _, after = learned(tiny_model("llama"), tmp_path / "all", share=0.25, calibration=1)
    _, dense = learned(tiny_model("llama"), tmp_path / "dense", share=1)
    every = torch.cat([f.B.abs().flatten() for f in dense.values()]).sort(descending=True).values
    for name, f in after.items():
        B = dense[name].B
        assert torch.equal(f.B, torch.where(B.abs() >= every[len(every) // 4 - 1], B, 0))


@pytest.mark.parametrize("resumed", [1, 2, 3])
def test_a_half_trained_task_ends_with_the_same_bits(
    tmp_path: Path, tiny_model: TinyModel, resumed: int
) -> None:
    """Resumed before the choice, right after it, and later."""
    options = {"share": 0.25, "calibration": 0.3}
    _, whole = learned(tiny_model("llama"), tmp_path, Points(tmp_path / "points"), **options)
    _, again = learned(tiny_model("llama"), tmp_path, Points(tmp_path / "points", resumed), **options)
    assert_same(whole, again)


def test_a_look_at_the_model_before_leaves_a_frozen(tiny_model: TinyModel) -> None:
    backbone: Any = load_backbone(str(tiny_model("llama")))
    adapter = build("lori", {}).attach(backbone.model, LORA, stage=1, seed=1)
    with pytest.raises(KeyError), adapter.without():
        raise KeyError
    for f in adapter.factors().values():
        assert (f.A.requires_grad, f.B.requires_grad) == (False, True)
