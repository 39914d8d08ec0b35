"""What a training step of nlora computes needs no number on the host, and makes nothing on another device.

The device is torch's "meta", whose tensors have no numbers: reading one raises, and so does meeting a tensor of the
CPU. A GPU would wait at each such place.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.utils import send_to_device
from torch.nn import functional as F

from nlora.config.schema import LoraOptions
from nlora.data.packing import pack
from nlora.data.task import TokenizedExample
from nlora.kernels.dropout import kept_entries
from nlora.methods.registry import build
from nlora.models import packed_layout
from nlora.models.lora_adapter import LoraAdapter
from nlora.models.packed_attention import packed_attention, packed_logits
from nlora.training import fast_modules as replaced
from nlora.training.fast_modules import GatedLayer, RmsNorm, fast_modules
from tiny import load

BEGINNINGS = [[5, 6, 7, 8], [9, 10, 11]]
EXAMPLES = [
    TokenizedExample([*beginning, *rest], [50, *rest, 1])
    for beginning in BEGINNINGS
    for rest in ([40, 41], [43])
]


@pytest.mark.parametrize("way", ["copied", "merged", "one call"])
@pytest.mark.parametrize("method", ["nlora", "olora", "ella", "ewc"])
def test_a_step_reads_nothing_from_the_device(
    tiny_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, method: str, way: str
) -> None:
    if way == "one call":
        monkeypatch.setattr(packed_layout, "ONE_CALL_DEVICES", ("meta",))
    if way == "merged":
        monkeypatch.setattr(packed_layout, "MERGE_FROM", 1)
        monkeypatch.setattr(packed_layout, "MERGE_DEVICES", ("meta",))
    monkeypatch.setattr(torch, "autocast", lambda device_type, **options: nullcontext())  # not for "meta"
    monkeypatch.setattr(replaced, "_if_equal", lambda kind, original, width: kind(original))
    model = load(tiny_model("llama")).requires_grad_(False)
    adapter = LoraAdapter.attach(model, LoraOptions(r=4, dropout=0.1), seed=1)
    earlier = [adapter.state()]
    adapter.model.to("meta").train()
    trained: Any = build(method, {"weight": 1.0})
    memory = {name: torch.ones(f.shape) for name, f in adapter.factors().items()}
    trained.restore(memory)
    trained.begin_task(adapter, earlier)
    assert {kept.device.type for kept in memory.values()} == {"cpu"}  # the run's own copy stays where it is
    batch = send_to_device(pack(EXAMPLES, beginnings=BEGINNINGS), torch.device("meta"))
    assert len(batch["groups"]) == 2
    with fast_modules(adapter.model, devices=("meta",)), packed_attention(model):
        kinds = {type(module) for module in adapter.model.modules()}
        assert {RmsNorm, GatedLayer} <= kinds
        logits = packed_logits(adapter.model, batch)
        loss = F.cross_entropy(logits[0].float(), batch["labels"][0, 1:], reduction="sum")
        (loss + trained.penalty(adapter)).backward()
    grads = [p.grad for p in adapter.model.parameters() if p.requires_grad]
    assert {g.device.type for g in grads if g is not None} == {"meta"}
    assert not any(g is None for g in grads)


def test_modules_stay_as_they_are_on_a_device_that_is_not_named(tiny_model: Callable[[str], Path]) -> None:
    model = load(tiny_model("llama")).requires_grad_(False).to("meta")
    kinds = [type(module) for module in model.modules()]
    with fast_modules(model):
        assert [type(module) for module in model.modules()] == kinds


def test_a_mask_of_dropout_is_made_where_its_input_is() -> None:
    mask = kept_entries(torch.empty(3, 5, device="meta"), 0.1)
    assert (mask.device.type, mask.shape, mask.dtype) == ("meta", (3, 5), torch.uint8)
