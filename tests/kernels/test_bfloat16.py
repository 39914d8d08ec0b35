"""In bfloat16, the closed forms are at least as close to the float64 result as what they replace."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from nlora.kernels.elementwise import rms_norm, silu_mul
from nlora.kernels.lora_linear import lora_linear
from nlora.kernels.rotary import rotate

Function = Callable[..., Tensor]
DRAW = torch.Generator().manual_seed(0)


def numbers(*size: int) -> Tensor:
    return torch.randn(*size, generator=DRAW).bfloat16()


ANGLES = numbers(1, 25, 32)
COS, SIN = (torch.cat([part, part], dim=-1) for part in (ANGLES.cos(), ANGLES.sin()))
NORM, WEIGHT = numbers(64), numbers(48, 64) * 0.1
A, B = torch.randn(4, 64, generator=DRAW), torch.randn(48, 4, generator=DRAW)  # float32, as in PEFT
ADDED = [numbers(6, 64), numbers(48, 6)]


def llama_norm(x: Tensor) -> Tensor:
    """As in transformers."""
    wide = x.float()
    return NORM * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5)).to(x.dtype)


def exact_norm(x: Tensor) -> Tensor:
    return NORM.to(x.dtype) * x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()


def gated(gate: Tensor, up: Tensor) -> Tensor:
    return F.silu(gate) * up


def turned(x: Tensor) -> Tensor:
    turned: Tensor = apply_rotary_pos_emb(x, x, COS.to(x.dtype), SIN.to(x.dtype))[0]
    return turned


def peft_layer(x: Tensor) -> Tensor:
    """PEFT's sum in float32, after a hook's in bfloat16."""
    wide = torch.promote_types(x.dtype, torch.float32)
    base = F.linear(x, WEIGHT.to(x.dtype)) + F.linear(F.linear(x, ADDED[0].to(x.dtype)), ADDED[1].to(x.dtype))
    return (base + 0.5 * F.linear(F.linear(x.to(wide), A.to(wide)), B.to(wide))).to(x.dtype)


def leaner_layer(x: Tensor) -> Tensor:
    return lora_linear(x, WEIGHT, None, A, B, scaling=0.5, dropout=0.0, added=ADDED)


CASES: dict[str, tuple[Function, Function, Function, list[Tensor]]] = {
    "norm": (lambda x: rms_norm(x, NORM, 1e-5), llama_norm, exact_norm, [numbers(500, 64)]),
    "gated": (silu_mul, gated, gated, [numbers(500, 64), numbers(500, 64)]),
    "rotary": (lambda x: rotate(x, x, COS, SIN)[0], turned, turned, [numbers(1, 20, 25, 64)]),
    "lora": (leaner_layer, peft_layer, peft_layer, [numbers(500, 64)]),
}


@pytest.mark.parametrize("case", CASES)
def test_rounding_is_no_worse(case: str) -> None:
    leaner, original, exact, inputs = CASES[case]
    upstream = numbers(*leaner(*inputs).shape)

    def results(function: Function, dtype: torch.dtype) -> list[Tensor]:
        """Value and gradients."""
        x = [given.to(dtype).requires_grad_() for given in inputs]
        y = function(*x)
        assert y.dtype == dtype
        return [y.detach().double(), *(g.double() for g in torch.autograd.grad(y, x, upstream.to(dtype)))]

    truth = results(exact, torch.float64)
    for mine, theirs, wanted in zip(
        results(leaner, torch.bfloat16), results(original, torch.bfloat16), truth, strict=True
    ):
        error = (theirs - wanted).norm()
        assert 0 < error < 0.01 * wanted.norm()
        assert (mine - wanted).norm() < 1.02 * error
