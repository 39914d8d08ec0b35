"""A rough guess of a run's time, from its tokens and this machine's rate of matrix products.

Only matrix products are counted, which take about half of a training step on a CPU (`SHARE`), and on a GPU the time
that it takes to start a small model's operations.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cache

SHARE = 0.5
"""Share of the machine's matrix rate that a step reaches; 0.4 to 0.6 on two CPU cores with SmolLM2."""
SIZES = {"cpu": 768, "cuda": 8192}
"""Rows and columns of the measured matrices. A product of 768 takes a GPU less time than its launch; one of 8192 takes
a large GPU milliseconds, and 512 MiB in float32."""
START_SECONDS = {"cpu": 0.0, "cuda": 6e-4}
"""A CPU computes what it starts. A GPU waits for a small model's operations: 7.6e-4 s for each layer on the machine of
an H100, before they became fewer (docs/gpu.md)."""
LEAST_TOKENS = 100
"""A pass over fewer tokens is hardly faster, because reading the weights takes the time."""


@dataclass(frozen=True, slots=True)
class Speed:
    """How fast a model computes on a machine.

    parameters: how many each token passes through. layers: how many layers with weights of their own it passes. rate:
    floating-point operations per second. start_seconds: that starting one layer's operations takes, and those of its
    gradients.
    """

    parameters: float
    layers: int
    rate: float
    start_seconds: float

    @classmethod
    def here(cls, parameters: float, layers: int, dtype: str) -> Speed:
        """On this machine's first device, in this dtype."""
        return cls(parameters, layers, flops_per_second(dtype), START_SECONDS[_device()])


def pass_tokens(tokens: float, shared: float, rows: float) -> float:
    """Tokens computed by a forward pass over some rows, the shared prefix counted once."""
    return max(shared + rows * (tokens - shared), LEAST_TOKENS)


def train_seconds(speed: Speed, *, tokens: float, shared: float, rows: float, passes: float) -> float:
    """Seconds of training: 2 operations per weight and token forward, 2 back through the activations (LoRA)."""
    computing = 4 * speed.parameters * pass_tokens(tokens, shared, rows) / speed.rate
    return passes * max(computing, speed.layers * speed.start_seconds)


def score_seconds(speed: Speed, *, tokens: float, shared: float, rows: float, passes: float) -> float:
    """Seconds of scoring: forward only, which is a third of the operations to start."""
    computing = 2 * speed.parameters * pass_tokens(tokens, shared, rows) / speed.rate
    return passes * max(computing, speed.layers * speed.start_seconds / 3)


def bfloat16_gain() -> float:
    """How many times faster matrix products are in bfloat16 than in float32, on this machine's first device."""
    return flops_per_second("bfloat16") / flops_per_second("float32")


def flops_per_second(dtype: str, size: int | None = None, repeats: int = 15) -> float:
    """The rate that a step can expect: the matrix rate of this machine's first device in a dtype, times SHARE.

    It is measured once in a process for each number of threads. size: rows and columns of the matrices; None: as SIZES
    says. repeats: the fastest product counts, since the first ones run at half the speed on some processors.
    """
    import torch

    return SHARE * _matrix_rate(dtype, size, repeats, torch.get_num_threads())


@cache
def _matrix_rate(dtype: str, size: int | None, repeats: int, threads: int) -> float:
    import torch

    from nlora.kernels.bfloat16_products import widen_products

    device = _device()
    if dtype == "bfloat16":
        widen_products()  # as loading a model does
    size = size or SIZES[device]
    a = torch.ones(size, size, device=device, dtype=getattr(torch, dtype))
    best = float("inf")
    for _ in range(repeats):
        begin = time.perf_counter()
        float((a @ a)[0, 0])  # reading one number waits for the GPU
        best = min(best, time.perf_counter() - begin)
    return 2 * size**3 / best


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
