"""LwF's loss on a tiny model that really trains."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from nlora.methods.registry import build
from nlora.models.lora_adapter import LoraAdapter
from tiny import LORA, load, spread

LOGITS = torch.randn(2, 3, 9, generator=torch.Generator().manual_seed(1))
TARGETS = torch.tensor([[1, 2, -100], [3, 4, 5]])


def never() -> torch.Tensor:
    pytest.fail("the old model ran, which costs a forward pass")


def test_the_old_model_does_not_run_at_the_first_stage_or_with_weight_zero(
    tiny_model: Callable[[str], Path],
) -> None:
    adapter = LoraAdapter.attach(load(tiny_model("llama")), LORA, seed=1)
    first, zero = build("lwf", {}), build("lwf", {"weight": 0})
    first.begin_task(adapter, [])
    zero.begin_task(adapter, [adapter.state()])
    assert first.extra_loss(LOGITS, TARGETS, never) is None
    assert zero.extra_loss(LOGITS, TARGETS, never) is None
    first.begin_task(adapter, [adapter.state()])
    assert first.extra_loss(LOGITS, TARGETS, lambda: LOGITS + 1.0) == pytest.approx(0, abs=1e-5)
    double = build("lwf", {"weight": 0.6})
    double.begin_task(adapter, [adapter.state()])
    other = LOGITS.flip(-1)
    one, two = (m.extra_loss(LOGITS, TARGETS, lambda: other) for m in (first, double))
    assert one is not None
    assert two is not None
    torch.testing.assert_close(2 * one, two)


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_without_is_the_backbone_alone_and_leaves_the_adapter_as_it_was(
    tiny_model: Callable[[str], Path], family: str
) -> None:
    model = load(tiny_model(family))
    ids = torch.tensor([[5, 9, 17, 33]])
    more = {"decoder_input_ids": ids} if family == "t5" else {}
    with torch.no_grad():
        plain = model(input_ids=ids, **more).logits
    adapter = LoraAdapter.attach(model, LORA, seed=1)
    spread(adapter)
    adapter.model.train()
    with torch.no_grad(), adapter.without():
        assert torch.equal(adapter.model(input_ids=ids, **more).logits, plain)
    assert adapter.model.training
    assert all(f.A.requires_grad and f.B.requires_grad for f in adapter.factors().values())
    adapter.model.eval()
    with torch.no_grad():
        assert not torch.allclose(adapter.model(input_ids=ids, **more).logits, plain, atol=1e-4)
