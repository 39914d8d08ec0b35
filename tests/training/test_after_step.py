"""The hook after each optimizer step: when it is called and with what, and that what it changes is trained on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nlora.config.schema import LoraOptions
from nlora.config.train_options import TrainOptions
from nlora.data.task import TokenizedExample
from nlora.models.backbone import load_backbone
from nlora.models.lora_adapter import LoraAdapter
from nlora.training.trainer import train

EXAMPLES = [TokenizedExample((*range(20, 30 + i % 5),), (50 + i % 7, 1)) for i in range(12)]


@pytest.mark.parametrize("micro", [8, 2])
def test_it_is_called_after_each_step_with_the_steps_learning_rate(
    tmp_path: Path, tiny_model: Callable[[str], Path], micro: int
) -> None:
    backbone: Any = load_backbone(str(tiny_model("llama")))
    adapter = LoraAdapter.attach(backbone.model, LoraOptions(r=2, dropout=0.0), seed=1)
    told: list[tuple[Any, ...]] = []
    seen: list[torch.Tensor] = []
    first = next(iter(adapter.factors().values()))

    def hook(*, step: int, steps: int, learning_rate: float, optimizer: torch.optim.Optimizer) -> None:
        told.append(("hook", step, steps, learning_rate))
        assert type(optimizer) is torch.optim.AdamW
        assert float(optimizer.state[first.B]["step"]) == step  # it has been taken
        seen.append(first.B.detach().clone())
        with torch.no_grad():
            first.B.zero_()

    options = TrainOptions(
        batch_size=8, epochs=2, learning_rate=1e-2, micro_batch_size=micro, schedule="linear", warmup_steps=2
    )
    train(
        backbone,
        adapter,
        EXAMPLES,
        options,
        penalty=lambda: None,
        after_step=hook,
        seed=5,
        folder=tmp_path,
        on_step=lambda step: told.append(("step", step)),
    )
    rates = [0.0, 5e-3, 1e-2, 5e-3]  # two steps up, two down
    wanted = [one for n, rate in enumerate(rates, 1) for one in (("hook", n, 4, rate), ("step", n))]
    assert told == wanted
    # From zero each time, a step of Adam moves an entry by no more than about the learning rate.
    assert not seen[0].any()
    assert all(0 < B.abs().max() <= 1.5 * rate for B, rate in zip(seen[1:], rates[1:], strict=True))
    assert not first.B.any()
