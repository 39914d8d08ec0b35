"""A rough guess of how long a run takes, from its tokens and from what this machine's matrix products reach.

    rate = flops_per_second("float32")
    train_seconds(parameters=106e6, tokens=75, shared=42, rows=8, passes=48, rate=rate)

Left out: everything but the matrix products, which get about half of a training step's time on a CPU (`SHARE`).
"""

from __future__ import annotations

import time

SHARE = 0.5
"""Share of the machine's matrix rate that a step reaches; 0.4 to 0.6 on two CPU cores with SmolLM2."""
LEAST_TOKENS = 100
"""A pass over fewer tokens takes hardly less time: it is bound by reading the weights."""


def pass_tokens(tokens: float, shared: int, rows: float) -> float:
    """Tokens that a forward pass over some rows computes, their shared beginning counted once."""
    return max(shared + rows * (tokens - shared), LEAST_TOKENS)


def train_seconds(
    *, parameters: float, tokens: float, shared: int, rows: float, passes: float, rate: float
) -> float:
    """Seconds of training: 2 operations per weight and token forward, 2 back through the activations (LoRA)."""
    return 4 * parameters * pass_tokens(tokens, shared, rows) * passes / rate


def score_seconds(
    *, parameters: float, tokens: float, shared: int, rows: float, passes: float, rate: float
) -> float:
    """Seconds of scoring: forward only."""
    return 2 * parameters * pass_tokens(tokens, shared, rows) * passes / rate


def bfloat16_gain() -> float:
    """How many times as fast matrix products in bfloat16 are on this machine's first device as in float32."""
    return flops_per_second("bfloat16") / flops_per_second("float32")


def flops_per_second(dtype: str, size: int = 768, repeats: int = 5) -> float:
    """What a step may count on: the matrix rate of this machine's first device in a number format, times SHARE."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    a = torch.ones(size, size, device=device, dtype=getattr(torch, dtype))
    best = float("inf")
    for _ in range(repeats):
        begin = time.perf_counter()
        float((a @ a)[0, 0])  # reading one number waits for the GPU
        best = min(best, time.perf_counter() - begin)
    return SHARE * 2 * size**3 / best
