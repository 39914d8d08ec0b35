"""LoRA layers and attention with a faster forward: the same numbers, and PEFT's switches still work."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from nlora.models.backbone import load_backbone
from nlora.models.lora_factors import LoraFactors
from nlora.models.unmerged_updates import UnmergedUpdates, UpdateHook
from nlora.training.fast_forwards import fast_rotation, lora_forward
from nlora.training.fast_modules import fast_modules

TinyModel = Callable[[str], Path]
IDS = torch.arange(2, 22).view(2, 10)


def with_lora(folder: Path, dtype: str = "float32", **options: Any) -> Any:
    """A tiny model under PEFT, with an update that is not zero."""
    torch.manual_seed(0)
    config = LoraConfig(
        r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], init_lora_weights=False, **options
    )
    backbone: Any = load_backbone(str(folder), dtype=dtype).model
    return get_peft_model(backbone, config)


def loss_and_gradients(model: Any) -> list[torch.Tensor]:
    model.zero_grad()
    loss = model(input_ids=IDS).logits.square().mean()
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


def replaced(model: nn.Module) -> set[str]:
    """Kinds of modules with a forward that was replaced, and the names of functions that were."""
    kinds = {type(m).__name__ for m in model.modules() if "forward" in vars(m)}
    files = [vars(sys.modules[type(m).__module__]) for m in model.modules()]
    rotations = [file.get("apply_rotary_pos_emb") for file in files]
    return kinds | {r.__name__ for r in rotations if r is not None and r.__module__.startswith("nlora")}


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma", "mistral", "opt"])
def test_loss_and_gradients_are_the_same(tiny_model: TinyModel, family: str) -> None:
    model = with_lora(tiny_model(family)).eval()
    expected = loss_and_gradients(model)
    with fast_modules(model):
        assert replaced(model) == {"Linear"} | (set() if family == "opt" else {"rotation"})
        for found, wanted in zip(loss_and_gradients(model), expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))
    assert not replaced(model)
    assert len(expected) > 8


def test_a_bfloat16_layer_has_its_update_in_float32(tiny_model: TinyModel) -> None:
    """As in PEFT: nearly everything is equal to the last bit, and the rest is rounded once less."""
    model = with_lora(tiny_model("llama"), dtype="bfloat16").eval()
    layer: Any = next(m for m in model.modules() if hasattr(m, "base_layer"))
    x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(2)).bfloat16()
    with torch.no_grad():
        expected = layer(x)
        with fast_modules(model), pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(layer), "forward", None)  # the original must not be used
            found = layer(x)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected, rtol=2**-7, atol=2**-9)


def test_unmerged_updates_of_a_layer_are_part_of_the_faster_forward(tiny_model: TinyModel) -> None:
    model = with_lora(tiny_model("llama")).eval()
    names = ["model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.v_proj"]
    draw = torch.Generator().manual_seed(3)
    base = model.get_base_model()
    sizes = {name: base.get_submodule(name).base_layer.weight.shape for name in names}
    for rank in (3, 40):  # as two matrices, and as their product
        state = {
            name: LoraFactors(torch.randn(rank, n, generator=draw), torch.randn(m, rank, generator=draw), 0.1)
            for name, (m, n) in sizes.items()
        }
        unmerged = UnmergedUpdates(base, names)
        unmerged.activate([state])
        expected = loss_and_gradients(model)
        with fast_modules(model), pytest.MonkeyPatch.context() as patch:
            patch.setattr(UpdateHook, "__call__", None)  # it must not add them a second time
            found = loss_and_gradients(model)
        unmerged.deactivate()
        for mine, wanted in zip(found, expected, strict=True):
            torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))
        assert not torch.allclose(found[0], loss_and_gradients(model)[0], rtol=1e-3)


def test_dropout_is_drawn_as_without_it(tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The replaced modules draw the same masks with and without the faster forward of LoRA layers."""
    model = with_lora(tiny_model("llama"), lora_dropout=0.25).train()
    results = []
    for fused in (True, False):
        with monkeypatch.context() as patch:
            if not fused:
                patch.setattr("nlora.training.fast_modules.lora_forward", lambda module: None)
            with fast_modules(model):
                torch.manual_seed(1)
                results.append(loss_and_gradients(model))
    for found, wanted in zip(*results, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))
    assert not torch.equal(results[0][0], loss_and_gradients(model.eval())[0])


def test_an_adapter_that_is_off_merged_or_one_of_two_is_left_to_peft(tiny_model: TinyModel) -> None:
    model = with_lora(tiny_model("llama")).eval()
    model.add_adapter("second", LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))

    def logits() -> list[torch.Tensor]:
        found = []
        with torch.no_grad():
            with model.disable_adapter():
                found.append(model(input_ids=IDS).logits)
            for names in ("default", "second", ["default", "second"]):
                model.base_model.set_adapter(names)
                found.append(model(input_ids=IDS).logits)
            model.merge_adapter()
            found.append(model(input_ids=IDS).logits)
            model.unmerge_adapter()
        return found

    expected = logits()
    with fast_modules(model):
        for mine, theirs in zip(logits(), expected, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(expected[0], expected[1], atol=1e-3)
    assert not torch.allclose(expected[1], expected[3], atol=1e-3)


def test_a_rate_of_almost_one_is_left_to_torch(tiny_model: TinyModel) -> None:
    model = with_lora(tiny_model("llama"), lora_dropout=1 - 1e-9).train()
    with fast_modules(model):
        assert torch.isfinite(loss_and_gradients(model)[0])


def test_hooks_on_the_parts_of_a_layer_are_called(tiny_model: TinyModel) -> None:
    model = with_lora(tiny_model("llama")).eval()
    called: list[int] = []
    layer: Any = next(m for m in model.modules() if hasattr(m, "base_layer"))
    with fast_modules(model):
        for number, part in enumerate((layer.base_layer, layer.lora_A["default"], layer.lora_B["default"])):
            hook = part.register_forward_hook(lambda *_, number=number: called.append(number))
            model(input_ids=IDS)
            hook.remove()
        model(input_ids=IDS)
    assert called == [0, 1, 2]


def test_other_kinds_of_layers_keep_their_forward(tiny_model: TinyModel) -> None:
    model = with_lora(tiny_model("llama"))
    layers = [m for m in model.modules() if type(m).__name__ == "Linear" and hasattr(m, "base_layer")]
    assert all(lora_forward(layer) for layer in layers)
    layers[0].base_layer.weight.requires_grad_(True)
    layers[1].base_layer.to(torch.float64)
    assert [lora_forward(layer) is None for layer in layers[:3]] == [True, True, False]
    dora = with_lora(tiny_model("llama"), use_dora=True).eval()
    expected = loss_and_gradients(dora)
    with fast_modules(dora), pytest.MonkeyPatch.context() as patch:
        patch.setattr("nlora.training.fast_forwards.lora_linear", None)
        for found, wanted in zip(loss_and_gradients(dora), expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))


def apply_rotary_pos_emb(q: torch.Tensor, k: torch.Tensor, cos: Any, sin: Any) -> Any:
    """The known name with another formula: neighbors are pairs."""
    return q * cos.unsqueeze(1), k * sin.unsqueeze(1)


class OddAttention(nn.Module):
    def forward(self, q: torch.Tensor, k: torch.Tensor, cos: Any, sin: Any) -> Any:
        return apply_rotary_pos_emb(q, k, cos, sin)


def test_another_rotation_of_the_same_name_stays() -> None:
    original = apply_rotary_pos_emb
    assert fast_rotation(original) is None
    with fast_modules(OddAttention()):
        assert apply_rotary_pos_emb is original


def test_attention_that_calls_the_rotation_differently_gets_the_original(
    tiny_family: Callable[[str], Any],
) -> None:
    """Qwen4's indexer rotates only its queries, with a function of the same name."""
    model = tiny_family("qwen4_exp_text").requires_grad_(False)
    ids = torch.arange(5, 40)[None]
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        with fast_modules(model):
            torch.testing.assert_close(model(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-4)
