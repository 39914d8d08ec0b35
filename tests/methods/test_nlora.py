"""N-LoRA's penalty compared with brute force over the whole update, and with the released code's numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from golden import CASES, GoldenCase, load_case, load_model
from nlora.config.schema import LoraOptions
from nlora.methods.contract import parametrize_with_checks
from nlora.methods.nlora import DEFAULT_WEIGHTS
from nlora.methods.registry import build
from nlora.models.lora_adapter import AdapterState, LoraAdapter, LoraFactors, ModuleShape
from nlora.models.merged_updates import MergedUpdates
from tiny import SAME_SUMS

RELEASED = {"penalty": "factor_l1", "weight": 0.4}


class Holder:
    """Replaces an adapter: a penalty may use only its factors."""

    def __init__(self, state: AdapterState) -> None:
        self._state = state

    def factors(self) -> AdapterState:
        return self._state


def random_factors(out: int, n_in: int, seed: int, scaling: float = 4.0) -> LoraFactors:
    generator = torch.Generator().manual_seed(seed)
    A = torch.randn(3, n_in, generator=generator, dtype=torch.float64).requires_grad_()
    B = torch.randn(out, 3, generator=generator, dtype=torch.float64).requires_grad_()
    return LoraFactors(A, B, scaling)


@pytest.fixture
def two_modules() -> AdapterState:
    return {"q": random_factors(12, 12, 0), "v": random_factors(4, 12, 1, scaling=-0.5)}


def penalty(state: AdapterState, **options: Any) -> torch.Tensor:
    value = build("nlora", options).penalty(Holder(state))  # type: ignore[arg-type]
    assert value is not None
    return value


def brute_force(state: AdapterState) -> float:
    """Σ|s·B·A| entry by entry."""
    return sum(
        abs(f.scaling * sum(f.B[i, k].item() * f.A[k, j].item() for k in range(3)))
        for f in state.values()
        for i in range(f.shape[0])
        for j in range(f.shape[1])
    )


def test_update_l1_is_the_weighted_sum_over_all_entries_of_all_modules(two_modules: AdapterState) -> None:
    assert penalty(two_modules, weight=0.01).item() == pytest.approx(
        0.01 * brute_force(two_modules), rel=1e-10
    )


def test_mean_divides_by_the_number_of_entries_of_all_modules(two_modules: AdapterState) -> None:
    wanted = 3.0 * brute_force(two_modules) / (12 * 12 + 4 * 12)
    assert penalty(two_modules, weight=3.0, reduction="mean").item() == pytest.approx(wanted, rel=1e-10)


def test_factor_l1_is_unscaled_and_summed_over_modules() -> None:
    state = {"q": random_factors(6, 6, 0), "v": random_factors(5, 5, 1)}
    wanted = 0.0
    for f in state.values():
        for i in range(3):
            for j in range(3):
                wanted += abs(sum(f.A[i, k].item() * f.B[k, j].item() for k in range(f.A.shape[1])))
    assert penalty(state, penalty="factor_l1", weight=0.4).item() == pytest.approx(0.4 * wanted, rel=1e-10)


@pytest.mark.parametrize(("kind", "reduction"), list(DEFAULT_WEIGHTS))
def test_the_default_weight_belongs_to_the_penalty(kind: str, reduction: str) -> None:
    state = {"q": random_factors(6, 6, 0)}
    default = penalty(state, penalty=kind, reduction=reduction)
    one = penalty(state, penalty=kind, reduction=reduction, weight=1)
    assert default.item() == pytest.approx(DEFAULT_WEIGHTS[kind, reduction] * one.item())


def test_update_l2_is_the_weighted_sum_of_all_squared_entries(two_modules: AdapterState) -> None:
    squares = sum(f.update().square().sum().item() for f in two_modules.values())
    assert penalty(two_modules, penalty="update_l2", weight=0.3).item() == pytest.approx(0.3 * squares)
    mean = penalty(two_modules, penalty="update_l2", weight=3.0, reduction="mean")
    assert mean.item() == pytest.approx(3.0 * squares / (12 * 12 + 4 * 12))


@parametrize_with_checks(["nlora"], {"penalty": "update_l2", "weight": 0.5})
def test_update_l2_keeps_the_contract(check: Callable[[], None]) -> None:
    check()


@pytest.mark.parametrize("kind", ["update_l1", "factor_l1", "update_l2"])
def test_weight_zero_is_no_penalty_at_all(kind: str, two_modules: AdapterState) -> None:
    assert build("nlora", {"weight": 0, "penalty": kind}).penalty(Holder(two_modules)) is None  # type: ignore[arg-type]


def test_check_groups_the_layers_that_factor_l1_cannot_take() -> None:
    modules = [
        ModuleShape(f"layers.{i}.attn.{part}", 576, out, 8)
        for i in range(30)
        for part, out in (("q_proj", 576), ("v_proj", 192))
    ]
    modules.append(ModuleShape("lm_head", 576, 1000, 8))
    first, second = build("nlora", RELEASED).check(modules)
    assert first.where == "method.penalty"
    assert "layers.0.attn.v_proj maps 576 to 192 (and 29 more like it); use update_l1" in first.what
    assert "lm_head maps 576 to 1000; use update_l1" in second.what
    assert build("nlora", {}).check(modules) == []
    assert build("nlora", RELEASED).check(modules[:1]) == []


# --- against the released code ---


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("arch", ["t5", "llama"])
def test_factor_l1_equals_the_released_penalty(arch: str, case: str, shared: Path) -> None:
    golden = load_case(shared, f"nlora_{arch}", case)
    value = penalty(golden.new, penalty="factor_l1", weight=1).item()
    assert value == pytest.approx(golden.numbers["l1_loss"], rel=1e-6)
    for name, f in golden.new.items():
        numbers = golden.per_module(name)
        alone = penalty({name: f}, penalty="factor_l1", weight=1).item()
        assert alone == pytest.approx(numbers["torch.norm(A@B,p=1)"], rel=1e-6)
        (update_key,) = (key for key in numbers if key.startswith("(B@A).abs().sum()"))
        update = penalty({name: LoraFactors(f.A, f.B, 1.0)}, weight=1).item()
        assert update == pytest.approx(numbers[update_key], rel=1e-5)


def attached(shared: Path, arch: str, golden: GoldenCase) -> LoraAdapter:
    """The golden model with earlier factors merged and the new ones attached."""
    model = load_model(shared, arch)
    if golden.earlier is not None:
        MergedUpdates(model, list(golden.earlier)).activate([golden.earlier])
    adapter = LoraAdapter.attach(model, LoraOptions(r=8, alpha=32, dropout=0.0), seed=0)
    assert adapter.factors().keys() == golden.new.keys()
    adapter.load_state(golden.new)
    return adapter


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
def test_a_training_step_equals_the_released_one(case: str, shared: Path) -> None:
    """Cross-entropy, penalty, total and every gradient on T5, with the earlier adapters merged in."""
    golden = load_case(shared, "nlora_t5", case)
    adapter = attached(shared, "t5", golden)
    ce = cross_entropy(adapter, "t5", golden.batch)
    added = build("nlora", RELEASED).penalty(adapter)
    assert added is not None
    total = ce + added
    assert ce.item() == pytest.approx(golden.ce, rel=1e-5)
    assert added.item() == pytest.approx(0.4 * golden.numbers["l1_loss"], rel=1e-5)
    assert total.item() == pytest.approx(golden.numbers["total"], rel=1e-5)
    total.backward()
    norm = torch.stack([p.grad.norm() for f in adapter.factors().values() for p in (f.A, f.B)]).norm()
    assert norm.item() == pytest.approx(
        golden.numbers["grad_norm_before_clip"], rel=1e-5 if SAME_SUMS else 2e-5
    )
    for name, f in adapter.factors().items():
        for parameter, wanted in zip((f.A, f.B), golden.grads[name], strict=True):
            # 2e-6: float32 noise; the whole gradient has norm 0.5 to 7, and merging sums in another order.
            torch.testing.assert_close(parameter.grad, wanted, rtol=1e-5, atol=2e-6 if SAME_SUMS else 5e-6)


@pytest.mark.parametrize("case", CASES)
def test_the_released_step_on_llama(case: str, shared: Path) -> None:
    """The same on LLaMA, with the released loss's wrong mask rebuilt in the test only."""
    golden = load_case(shared, "nlora_llama", case)
    adapter = attached(shared, "llama", golden)
    ce = cross_entropy(adapter, "llama", golden.batch)
    added = build("nlora", RELEASED).penalty(adapter)
    assert added is not None
    assert ce.item() == pytest.approx(golden.ce, rel=1e-5)
    (ce + added).backward()
    for name, f in adapter.factors().items():
        for parameter, wanted in zip((f.A, f.B), golden.grads[name], strict=True):
            torch.testing.assert_close(parameter.grad, wanted, rtol=1e-5, atol=1e-7)
