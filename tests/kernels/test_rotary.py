"""The rotation against transformers' own, and its gradient against autograd's."""

from __future__ import annotations

import torch
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from nlora.kernels.rotary import rotate


def test_it_rotates_as_transformers_does_and_back() -> None:
    draw = torch.Generator().manual_seed(0)
    q, k, up_q, up_k = (
        torch.randn(2, heads, 5, 8, generator=draw, dtype=torch.float64) for heads in (4, 2, 4, 2)
    )
    half = torch.rand(2, 5, 4, generator=draw, dtype=torch.float64) * 7
    angles = torch.cat([half, half], dim=-1)
    # The memory order of a projection's output: positions before heads.
    q, k = (x.transpose(1, 2).contiguous().transpose(1, 2).requires_grad_() for x in (q, k))
    results = []
    for turn in (apply_rotary_pos_emb, rotate):
        found = turn(q, k, angles.cos(), angles.sin())
        results.append([*found, *torch.autograd.grad(found, (q, k), (up_q, up_k))])
    for mine, theirs in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)
