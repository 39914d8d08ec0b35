"""A step that is not finite is never taken: the weights stay those of the step before, and the error says why."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nlora.config.penalty_use import PenaltyUse
from nlora.config.schema import LoraOptions
from nlora.config.train_options import TrainOptions
from nlora.data.task import TokenizedExample
from nlora.models import processes
from nlora.models.backbone import load_backbone
from nlora.models.lora_adapter import AdapterState, LoraAdapter
from nlora.training import finite_guard
from nlora.training.finite_guard import FiniteGuard, NotFiniteError
from nlora.training.penalty_gradient import PenaltyGradient
from nlora.training.trainer import train

EXAMPLES = [TokenizedExample([*range(20, 30 + i % 4)], [50 + i % 7, 1]) for i in range(16)]
NAN, INF = float("nan"), float("inf")


class Broken(Exception):
    pass


def attempt(model: Path, folder: Path, at: int | None, **given: Any) -> tuple[AdapterState, Any]:
    """The adapter after a training of 8 steps (2 micro-batches each), and the error that stopped it.

    at: at this step, what `given` has as penalty, extra_loss or hook takes place.
    """
    backbone: Any = load_backbone(str(model))
    adapter = LoraAdapter.attach(backbone.model, LoraOptions(r=2, alpha=4, dropout=0.0), seed=1)
    taken = [0]
    options = TrainOptions(batch_size=4, micro_batch_size=2, epochs=2, learning_rate=1e-2, logging_steps=10)
    one = next(iter(adapter.factors().values())).B
    now = lambda: at is not None and taken[0] == at - 1  # noqa: E731
    if "gradient" in given:
        one.register_hook(lambda g: g * given["gradient"] if now() else g)
    extra = given.get("extra_loss")
    error = None
    try:
        train(
            backbone,
            adapter,
            EXAMPLES,
            options,
            penalty=lambda: one.sum() * 0 + (given.get("penalty", 0.0) if now() else 0.0),
            extra_loss=None if extra is None else lambda *_: torch.tensor(extra if now() else 0.0),
            seed=5,
            folder=folder,
            on_step=lambda step: taken.__setitem__(0, step) or stop_at(given, step),
        )
    except (NotFiniteError, Broken) as caught:
        error = caught
    return adapter.state(), error


def stop_at(given: dict[str, Any], step: int) -> None:
    if step == given.get("stop"):
        raise Broken


@pytest.mark.parametrize(
    ("what", "given"),
    [
        ("penalty", {"penalty": INF}),
        ("loss", {"extra_loss": NAN}),
        ("gradient", {"gradient": INF}),
    ],
)
def test_a_step_that_is_not_finite_leaves_the_weights_of_the_step_before(
    tmp_path: Path, tiny_model: Callable[[str], Path], what: str, given: dict[str, Any]
) -> None:
    """The hook's infinity only reaches the gradient; the penalty's is a constant, so its gradient is finite."""
    state, error = attempt(tiny_model("llama"), tmp_path, 3, **given)
    good, _ = attempt(tiny_model("llama"), tmp_path, None, stop=2)
    assert (error.what, error.step) == (what, 3)
    assert f"step 3: the {what} is {error.value}" in str(error)
    for name, f in good.items():
        assert torch.equal(state[name].A, f.A), name
        assert torch.equal(state[name].B, f.B), name


def test_the_examples_are_those_of_the_step(tmp_path: Path, tiny_model: Callable[[str], Path]) -> None:
    """Over an epoch of four steps, every example is in exactly one step."""
    rows: list[int] = []
    for step in (1, 2, 3, 4):
        _, error = attempt(tiny_model("llama"), tmp_path, step, penalty=NAN)
        assert len(error.rows) == 4
        rows += error.rows
    assert sorted(rows) == list(range(16))


def test_the_first_step_blames_no_learning_rate(tmp_path: Path, tiny_model: Callable[[str], Path]) -> None:
    _, error = attempt(tiny_model("llama"), tmp_path, 1, extra_loss=INF)
    assert "nothing was trained yet" in str(error)
    assert "learning_rate" not in str(error)


class Steps:
    """Three optimizer steps on one weight; the given gradients' norm is what the guard sees."""

    def __init__(self, defers: bool) -> None:
        self.weight = torch.nn.Parameter(torch.ones(3))
        self.optimizer = torch.optim.AdamW([self.weight], lr=0.1, fused=True)
        self.guard = FiniteGuard(self.optimizer, defers=defers)

    def take(self, gradients: Sequence[float]) -> None:
        for step, value in enumerate(gradients, start=1):
            self.weight.grad = torch.full((3,), value)
            rows: list[Tensor] = [torch.tensor([step]), torch.tensor([step + 10])]
            self.guard.before_step(
                step, loss=torch.tensor(1.0), penalty=0.0, gradient_norm=self.weight.grad.norm(), rows=rows
            )
            self.optimizer.step()


def test_on_a_gpu_updates_are_skipped_until_the_flag_is_read() -> None:
    """The way taken on a GPU, on the CPU: fused AdamW skips all steps from the first bad one on."""
    good, deferred = Steps(False), Steps(True)
    good.take([0.5])
    deferred.take([0.5, NAN, 0.5, INF])
    assert torch.equal(deferred.weight, good.weight)
    with pytest.raises(NotFiniteError) as caught:
        deferred.guard.check()
    assert (caught.value.what, caught.value.step, caught.value.rows) == ("gradient", 2, (2, 12))


@pytest.mark.parametrize(("own", "named"), [(1.0, (7, 8)), (INF, (1, 11, 7, 8))])
def test_processes_judge_by_the_loss_of_all_and_name_the_examples_that_broke_it(
    monkeypatch: pytest.MonkeyPatch, own: float, named: tuple[int, ...]
) -> None:
    """One of two processes; the other one's loss is infinite, on examples 7 and 8, with a finite gradient."""
    monkeypatch.setattr(processes, "size", lambda: 2)
    monkeypatch.setattr(finite_guard, "reduce", lambda loss, reduction: (loss + INF) / 2)
    monkeypatch.setattr(processes, "gather", lambda rows: [rows, [7, 8]])
    rows = [torch.tensor([1]), torch.tensor([11])]
    with pytest.raises(NotFiniteError) as caught:
        Steps(False).guard.before_step(1, loss=own, penalty=0.0, gradient_norm=1.0, rows=rows)
    assert (caught.value.what, caught.value.step, caught.value.rows) == ("loss", 1, named)


@pytest.mark.parametrize("value", [0.5, NAN])
def test_a_skipped_step_does_not_move_by_a_penalty_beside_the_optimizer_either(value: float) -> None:
    steps = Steps(True)
    beside = PenaltyGradient(PenaltyUse("decoupled"), [steps.weight])

    def move(scale: float) -> None:
        beside.entering((steps.weight * scale).sum(), 0, 1)
        beside.on_optimizer_step(None, None, None, optimizer=steps.optimizer)

    steps.take([0.0])
    before = steps.weight.detach().clone()
    move(0.5)
    torch.testing.assert_close(steps.weight.detach(), before - 0.1 * 0.5)
    steps.take([INF])
    kept = steps.weight.detach().clone()
    move(value)
    assert torch.equal(steps.weight, kept)


def test_a_deferred_flag_changes_nothing_in_a_good_training() -> None:
    now, deferred = Steps(False), Steps(True)
    for steps in (now, deferred):
        steps.take([0.5, -0.25, 1.0])
        steps.guard.check()
    assert torch.equal(now.weight, deferred.weight)


def test_a_learning_rate_that_is_too_large_is_said_to_be(
    tmp_path: Path, tiny_model: Callable[[str], Path]
) -> None:
    backbone: Any = load_backbone(str(tiny_model("llama")))
    adapter = LoraAdapter.attach(backbone.model, LoraOptions(r=2), seed=1)
    options = TrainOptions(batch_size=8, epochs=5, learning_rate=1e38)
    with pytest.raises(NotFiniteError, match=r"step 2: the loss is nan.*smaller train\.learning_rate"):
        train(backbone, adapter, EXAMPLES, options, penalty=lambda: None, seed=5, folder=tmp_path)
