"""One training step of O-LoRA against the released code's numbers, on T5 and LLaMA, with earlier adapters merged in."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from golden import CASES, GoldenCase, load_case, load_model
from nlora.config.schema import LoraOptions
from nlora.methods.base import Method
from nlora.methods.registry import build
from nlora.models.lora_adapter import LoraAdapter
from nlora.models.merged_updates import MergedUpdates
from tiny import SAME_SUMS

RELEASED = {"weight": 0.5, "norm_weight": 0.1}


def attached(shared: Path, arch: str, golden: GoldenCase) -> LoraAdapter:
    """The golden model with the earlier factors merged and the new ones attached."""
    model = load_model(shared, arch)
    if golden.earlier is not None:
        MergedUpdates(model, list(golden.earlier)).activate([golden.earlier])
    adapter = LoraAdapter.attach(model, LoraOptions(r=8, alpha=32, dropout=0.0), seed=0)
    assert adapter.factors().keys() == golden.new.keys()
    adapter.load_state(golden.new)
    return adapter


def begun(adapter: LoraAdapter, golden: GoldenCase, **options: float) -> Method:
    method = build("olora", options)
    method.begin_task(adapter, [] if golden.earlier is None else [golden.earlier])
    return method


def cross_entropy(adapter: LoraAdapter, arch: str, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    if arch == "t5":
        return adapter.model(**batch).loss  # type: ignore[no-any-return]
    logits = adapter.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    # As released: summed over the mask without its last column, divided by the sum of the whole mask.
    tokens = torch.nn.functional.cross_entropy(
        logits[:, :-1].transpose(1, 2), batch["labels"][:, 1:], reduction="none"
    )
    mask = batch["loss_mask"]
    return (tokens * mask[:, :-1]).sum() / mask.sum()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("arch", ["t5", "llama"])
def test_a_training_step_equals_the_released_one(arch: str, case: str, shared: Path) -> None:
    """Cross-entropy, both penalties, total and every gradient."""
    golden = load_case(shared, f"olora_{arch}", case)
    assert (golden.numbers["lamda_1"], golden.numbers["lamda_2"]) == (0.5, 0.1)
    adapter = attached(shared, arch, golden)

    overlap = begun(adapter, golden, weight=1).penalty(adapter)
    assert (overlap is None) == (golden.earlier is None)
    assert (0.0 if overlap is None else overlap.item()) == pytest.approx(
        golden.numbers["orthogonal_loss"], rel=1e-5
    )
    norms = begun(adapter, golden, weight=0, norm_weight=1).penalty(adapter)
    assert norms is not None
    assert norms.item() == pytest.approx(golden.numbers["l2_loss"], rel=1e-5)

    ce = cross_entropy(adapter, arch, golden.batch)
    added = begun(adapter, golden, **RELEASED).penalty(adapter)
    assert added is not None
    assert ce.item() == pytest.approx(golden.ce, rel=1e-5)
    assert (ce + added).item() == pytest.approx(golden.numbers["total"], rel=1e-5)
    (ce + added).backward()
    for name, f in adapter.factors().items():
        for parameter, wanted in zip((f.A, f.B), golden.grads[name], strict=True):
            # 2e-6: float32 noise; the whole gradient has norm 0.4 to 8, and merging sums in another order.
            torch.testing.assert_close(
                parameter.grad, wanted, rtol=1e-5, atol=2e-6 if SAME_SUMS or arch != "t5" else 5e-6
            )


@pytest.mark.parametrize("arch", ["t5", "llama"])
def test_each_modules_part_equals_the_released_one(arch: str, shared: Path) -> None:
    golden = load_case(shared, f"olora_{arch}", "task2_nonzeroB")
    assert golden.earlier is not None
    adapter = attached(shared, arch, golden)
    whole = adapter.factors()
    for name, f in whole.items():
        numbers = golden.per_module(name)
        adapter.factors = lambda name=name, f=f: {name: f}  # type: ignore[method-assign, misc]
        overlap = begun(adapter, golden, weight=1).penalty(adapter)
        assert overlap is not None
        assert overlap.item() == pytest.approx(numbers["orthogonal |lora_A @ loranew_A.T|.sum()"], rel=1e-5)
        norms = begun(adapter, golden, weight=0, norm_weight=1).penalty(adapter)
        assert norms is not None
        assert norms.item() == pytest.approx(numbers["l2 A"] + numbers["l2 B"], rel=1e-5)
