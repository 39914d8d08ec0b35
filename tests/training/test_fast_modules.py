"""The replacements compute what the originals do, forward and backward, and leave no trace."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nlora.kernels.dropout import Dropout
from nlora.models.backbone import load_backbone
from nlora.training.fast_modules import GatedLayer, RmsNorm, fast_modules

TinyModel = Callable[[str], Path]


def logits_and_gradient(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The logits of a fixed batch, and the gradient for the embedding's weight."""
    ids = torch.arange(2, 22).view(2, 10)
    model.eval()
    weight = model.get_input_embeddings().weight
    weight.requires_grad_(True)
    inputs = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    logits = model(input_ids=ids, **inputs).logits
    (gradient,) = torch.autograd.grad(logits.square().mean(), weight)
    return logits.detach(), gradient


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma", "gpt2", "opt", "t5"])
def test_the_model_computes_what_it_did(tiny_model: TinyModel, family: str) -> None:
    model: Any = load_backbone(str(tiny_model(family))).model
    model.requires_grad_(False)
    torch.manual_seed(8)
    for p in model.parameters():  # norms of fresh models have weights of 1, which would hide a lost weight
        if p.dim() == 1:
            p.add_(torch.rand_like(p) * 0.3)
    before = dict(model.named_modules())
    names = [name for name, _ in model.named_parameters()]
    expected = logits_and_gradient(model)
    with fast_modules(model):
        kinds = {type(module) for module in model.modules()}
        assert (RmsNorm in kinds) == (family in {"llama", "qwen2", "t5"})
        assert (GatedLayer in kinds) == (family in {"llama", "qwen2"})
        assert [name for name, _ in model.named_parameters()] == names
        # T5 does not scale its attention: random weights make its softmax sharp, which magnifies rounding.
        tolerance = 1e-3 if family == "t5" else 1e-5
        for found, wanted in zip(logits_and_gradient(model), expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=0, atol=tolerance * float(wanted.abs().max()))
    assert dict(model.named_modules()) == before


def test_every_dropout_is_replaced_and_put_back() -> None:
    inner = nn.Dropout(0.2)
    model = nn.ModuleDict({"a": nn.Sequential(inner, nn.Dropout(0.0)), "b": nn.Dropout(0.3)})
    before = dict(model.named_modules())
    with fast_modules(model):
        after = dict(model.named_modules())
        assert {name for name in before if before[name] is not after[name]} == {"a.0", "b"}
        found = [(type(m), m.p) for m in (after["a.0"], after["b"]) if isinstance(m, Dropout)]
        assert found == [(Dropout, 0.2), (Dropout, 0.3)]
        model.eval()
    assert dict(model.named_modules()) == before
    assert not inner.training


class OddRMSNorm(nn.Module):
    """A known name with another formula."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(6), requires_grad=False)
        self.variance_epsilon = 1e-6

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.abs().mean(-1, keepdim=True) + 1e-6) * self.weight


class PlainRMSNorm(OddRMSNorm):
    """A root mean square norm as it should be."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * self.weight


class PairRMSNorm(OddRMSNorm):
    def forward(self, x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return x * gate


def test_a_module_that_computes_something_else_under_a_similar_name_stays() -> None:
    listened = nn.RMSNorm(6, eps=1e-6)
    heard: list[int] = []
    listened.register_forward_hook(lambda *_: heard.append(1))
    model = nn.ModuleList([OddRMSNorm(), PairRMSNorm(), nn.LayerNorm(6, bias=False), nn.RMSNorm(6), listened])
    model.requires_grad_(False)
    before = list(model)
    with fast_modules(model):
        assert list(model) == before


def test_a_norm_is_replaced_only_if_it_is_frozen() -> None:
    model = nn.Sequential(nn.RMSNorm(6, eps=1e-6))
    with fast_modules(model):
        assert type(model[0]) is nn.RMSNorm
    with fast_modules(model.requires_grad_(False)):
        assert type(model[0]) is RmsNorm


def test_everything_is_put_back_after_an_error() -> None:
    model = nn.Sequential(nn.Dropout(0.1))
    before = list(model)

    def train() -> None:
        with fast_modules(model):
            assert list(model) != before
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train()
    assert list(model) == before


def test_other_precisions_are_left_to_the_original() -> None:
    model = nn.Sequential(nn.RMSNorm(6, eps=1e-6).half(), PlainRMSNorm()).requires_grad_(False)
    with fast_modules(model):
        assert [type(module) for module in model] == [nn.RMSNorm, RmsNorm]
        assert model[1](torch.ones(2, 6, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_bfloat16_is_replaced_too(tiny_model: TinyModel, family: str) -> None:
    """It is as close to float32 as the original; tests/kernels/test_bfloat16.py compares the rounding itself."""
    exact: Any = load_backbone(str(tiny_model(family))).model.requires_grad_(False)
    short: Any = load_backbone(str(tiny_model(family)), dtype="bfloat16").model.requires_grad_(False)
    exact.load_state_dict(short.state_dict())
    truth, plain = logits_and_gradient(exact), logits_and_gradient(short)
    with fast_modules(short):
        assert {RmsNorm, GatedLayer} < {type(module) for module in short.modules()}
        faster = logits_and_gradient(short)
    for found, original, wanted in zip(faster, plain, truth, strict=True):
        assert found.dtype == torch.bfloat16
        error = (original.float() - wanted).norm()
        assert 0 < error < 0.2 * wanted.norm()
        assert (found.float() - wanted).norm() < 2 * error


class ClampedGatedLayer(nn.Module):
    """DeepSeek-V4's feed-forward layer: LLaMA's, until a gate reaches the limit."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(6, 8), nn.Linear(6, 8)
        self.down_proj, self.act_fn = nn.Linear(8, 6), nn.SiLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = self.gate_proj(x).clamp(max=10.0), self.up_proj(x).clamp(min=-10.0, max=10.0)
        return self.down_proj(self.act_fn(gate) * up)  # type: ignore[no-any-return]


class NoEpsilonRMSNorm(OddRMSNorm):
    """Its eps has an unusual name, and numbers around 1 do not reveal it."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden_eps = self.__dict__.pop("variance_epsilon")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.hidden_eps) * self.weight


@pytest.mark.parametrize("odd", [ClampedGatedLayer, NoEpsilonRMSNorm])
def test_a_module_that_differs_only_on_large_or_small_numbers_stays(odd: type[nn.Module]) -> None:
    model = nn.ModuleList([odd()]).requires_grad_(False)
    before = list(model)
    with fast_modules(model):
        assert list(model) == before


def test_deepseek_v4_keeps_its_clamps(tiny_family: Callable[[str], Any]) -> None:
    model = tiny_family("deepseek_v4")
    model.requires_grad_(False)
    with fast_modules(model):
        assert GatedLayer not in {type(module) for module in model.modules()}
