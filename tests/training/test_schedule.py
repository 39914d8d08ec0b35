"""The learning rate of every optimizer step, against torch's and transformers' own schedulers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LinearLR, LRScheduler
from transformers import (
    TrainerCallback,
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_linear_schedule_with_warmup,
)

from helpers import learn, write_config
from nlora.config.load import load_config
from nlora.config.schema import LoraOptions
from nlora.config.train_options import TrainOptions
from nlora.data.task import TokenizedExample
from nlora.errors import InputErrors
from nlora.models.backbone import load_backbone
from nlora.models.lora_adapter import LoraAdapter
from nlora.runs import stage_training
from nlora.training.trainer import train

PEAK = 5e-3
EXAMPLES = [TokenizedExample([*range(20, 30 + i % 4)], [60 + i % 5, 1]) for i in range(22)]
TinyModel = Callable[[str], Path]


class _Rates(TrainerCallback):
    """The learning rate with which each optimizer step is made."""

    def __init__(self) -> None:
        self.rates: list[float] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.rates.append(kwargs["optimizer"].param_groups[0]["lr"])


def rates(folder: Path, model: Path, **options: Any) -> list[float]:
    backbone: Any = load_backbone(str(model))
    adapter = LoraAdapter.attach(backbone.model, LoraOptions(r=2), seed=1)
    seen = _Rates()
    values = TrainOptions(**{"batch_size": 4, "epochs": 2, "learning_rate": PEAK, **options})
    train(
        backbone, adapter, EXAMPLES, values, penalty=lambda: None, seed=5, folder=folder, callbacks=[seen]
    )  # fmt: skip
    return seen.rates


def expected(steps: int, schedule: Callable[[torch.optim.Optimizer], LRScheduler]) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=PEAK)
    scheduler, found = schedule(optimizer), []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize("micro", [4, 1])
@pytest.mark.parametrize(
    ("schedule", "torchs"),
    [
        ("constant", lambda optimizer: ConstantLR(optimizer, factor=1.0)),
        ("linear", lambda optimizer: LinearLR(optimizer, 1.0, 0.0, total_iters=12)),
        ("cosine", lambda optimizer: CosineAnnealingLR(optimizer, T_max=12)),
    ],
)
def test_without_a_warm_up_the_rates_are_torchs(
    tmp_path: Path, tiny_model: TinyModel, schedule: str, torchs: Any, micro: int
) -> None:
    """22 examples in batches of 4: the sixth step of each epoch has 2."""
    found = rates(tmp_path, tiny_model("llama"), schedule=schedule, micro_batch_size=micro)
    assert found == pytest.approx(expected(12, torchs), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize(
    ("warm_up", "steps"),
    [({"warmup_steps": 1}, 1), ({"warmup_steps": 3}, 3), ({"warmup_ratio": 0.3}, 4), ({"warmup_ratio": 0.25}, 3)],
)  # fmt: skip
@pytest.mark.parametrize(
    ("schedule", "theirs"),
    [
        ("constant", get_constant_schedule_with_warmup),
        ("linear", get_linear_schedule_with_warmup),
        ("cosine", get_cosine_schedule_with_warmup),
    ],
)
def test_with_a_warm_up_the_rates_are_transformers(
    tmp_path: Path, tiny_model: TinyModel, schedule: str, theirs: Any, warm_up: dict[str, Any], steps: int
) -> None:
    total = () if schedule == "constant" else (12,)
    found = rates(tmp_path, tiny_model("llama"), schedule=schedule, **warm_up)
    assert found == pytest.approx(expected(12, lambda optimizer: theirs(optimizer, steps, *total)))
    assert max(found) == PEAK
    assert found[0] == 0


def test_a_fraction_of_an_epoch_is_scheduled_to_its_last_step(tmp_path: Path, tiny_model: TinyModel) -> None:
    found = rates(tmp_path, tiny_model("llama"), schedule="linear", epochs=1.4)
    assert found == pytest.approx([PEAK * (9 - step) / 9 for step in range(9)])


def test_each_task_has_its_own_schedule(
    tmp_path: Path, tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both tasks have 16 examples: 4 steps, half of them a warm-up, except where the second one's stage differs."""
    seen: list[_Rates] = []

    def watched(*args: Any, **kwargs: Any) -> list[TrainerCallback]:
        seen.append(_Rates())
        return [seen[-1]]

    monkeypatch.setattr(stage_training, "_trackers", watched)
    train = {"epochs": 2, "batch_size": 8, "learning_rate": PEAK, "schedule": "linear", "warmup_ratio": 0.5}
    stages = {"animals": {"train": {"schedule": "constant", "warmup_ratio": 0, "warmup_steps": 1}}}
    learn(write_config(tmp_path, tiny_model("llama"), train=train, stages=stages))
    colors, animals = seen
    assert colors.rates == pytest.approx([0, PEAK / 2, PEAK, PEAK / 2])
    assert animals.rates == pytest.approx([0, PEAK, PEAK, PEAK])


def test_a_task_of_one_step_is_learned_in_spite_of_a_warm_up_ratio(
    tmp_path: Path, tiny_model: TinyModel
) -> None:
    """The first step of a warm-up has a rate of 0."""
    model = tiny_model("llama")
    assert rates(tmp_path / "one", model, batch_size=22, epochs=1, warmup_ratio=0.1) == [PEAK]
    assert rates(tmp_path / "two", model, batch_size=11, epochs=1, warmup_ratio=0.1) == [0, PEAK]


@pytest.mark.parametrize("method", ["nlora", "seqft"])
def test_a_mixed_precision_of_accelerate_launch_changes_nothing(
    tmp_path: Path, tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    found = []
    for name in ("plain", "mixed"):
        (tmp_path / name).mkdir()
        found.append(learn(write_config(tmp_path / name, tiny_model("llama"), method=method)))
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    weights = [
        sorted((tmp_path / name / "run").rglob("*.safetensors"), key=lambda file: file.parts[-3:])
        for name in ("plain", "mixed")
    ]
    assert len(weights[0]) >= 2
    assert [file.read_bytes() for file in weights[0]] == [file.read_bytes() for file in weights[1]]
    assert found[0].R == found[1].R


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["train.warmup_steps=3", "train.warmup_ratio=0.1"],
            "train: warmup_steps 3 and warmup_ratio 0.1 exclude each other; set one of them to 0",
        ),
        (
            ["train.warmup_steps=3", "stages.animals.train.warmup_ratio=0.1"],
            "stages.animals.train.warmup_ratio=0.1: warmup_steps 3 and warmup_ratio 0.1 exclude each other; set",
        ),
        (["train.warmup_ratio=1.5"], "train.warmup_ratio=1.5: must be a number >= 0 and < 1, not 1.5"),
        (["train.schedule=cosin"], "must be constant, linear or cosine, not 'cosin'; did you mean 'cosine'?"),
    ],
)
def test_a_schedule_that_cannot_be_is_one_line(tmp_path: Path, overrides: list[str], said: str) -> None:
    with pytest.raises(InputErrors) as error:
        load_config(write_config(tmp_path, "nowhere"), overrides)
    (problem,) = error.value.problems
    assert said in str(problem)
