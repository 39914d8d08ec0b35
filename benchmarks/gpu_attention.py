"""How gpu.py measures one layer's attention over a long common prefix: with copies of it, without, and by torch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor

import measure
from gpu_checks import EVERYWHERE, merging, one_call
from gpu_material import Row, Sizes
from measure import Spread
from nlora.data.packing import pack
from nlora.data.task import TokenizedExample
from nlora.models.packed_layout import BatchLayout, Layout
from nlora.training.peak_memory import peak_memory_bytes, reset_peak_memory

SECTION = "attention"
ROWS = 8
_ONE_CALL_TO = 3000
"""With more tokens, its mask would take hundreds of MiB, and nothing uses it."""


def attention(sizes: Sizes) -> Iterator[Row]:
    """One layer's packed attention over 8 examples of 100 tokens after a common prefix."""
    heads = {"9 heads, 3 of keys, float32": (9, 3, 64, torch.float32)}
    if sizes.device == "cuda":
        heads["32 heads, bfloat16"] = (32, 32, 128, torch.bfloat16)
    for prefix in (8, 16) if sizes.small else (150, 1000, 2000, 5924):
        layout = _layout(prefix, 5 if sizes.small else 100, sizes.device)
        for name, (H, Hk, D, dtype) in heads.items():
            states = [torch.randn(layout.tokens, h, D, device=sizes.device, dtype=dtype) for h in (H, Hk, Hk)]
            yield from _beside_each_other(f"prefix {prefix}, {name}", layout, states, sizes)
    if sizes.device == "cpu":
        yield Row(SECTION, "flex_attention", "", "skipped: no CUDA")


def _beside_each_other(what: str, layout: Layout, states: Sequence[Tensor], sizes: Sizes) -> Iterator[Row]:
    ways: dict[str, Callable[..., Tensor]] = {
        "copied": partial(_attend, layout, False),
        "not copied": partial(_attend, layout, True),
    }
    if layout.tokens <= _ONE_CALL_TO:
        ways["one call"] = partial(_attend_at_once, BatchLayout((layout,), layout.rows_at[:, -1]))
    if sizes.device == "cuda":
        ways["flex_attention"] = _flex(layout)
    copied: float | None = None
    for way, attend in ways.items():
        reset_peak_memory()
        try:
            milliseconds, kept = _timed(attend, states, sizes.rounds)
        except Exception as error:  # out of memory, or a kernel that is not there
            yield Row(SECTION, f"{what}, {way}", f"{type(error).__name__}: {error}"[:200])
            continue
        value = f"{milliseconds} ms, keeps {kept / 2**20:.1f} MiB"
        if sizes.device == "cuda":
            value += f", peak {measure.mib(peak_memory_bytes())}"
        if way == "copied":
            copied = milliseconds.median
        elif copied is not None:
            value += f", {copied / milliseconds.median:.2f} times as fast"
        yield Row(SECTION, f"{what}, {way}", value)


def _layout(prefix: int, length: int, device: str) -> Layout:
    common = list(range(prefix))
    batch = pack([TokenizedExample([*common, prefix + i, *range(length - 2)], [1, 2]) for i in range(ROWS)])
    (group,) = send_to_device(batch["groups"], torch.device(device))
    return Layout.of(group)


def _attend(layout: Layout, merges: bool, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    with merging(EVERYWHERE if merges else ()):
        return layout.attend(q, k, v, 0.0, None)


def _attend_at_once(batch: BatchLayout, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    with one_call():
        return batch.attend(q, k, v, 0.0, None)


def _flex(layout: Layout) -> Callable[..., Tensor]:
    """The same by torch's flex_attention, compiled for the layout."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    S, P, device = layout.tokens, layout.prefix, layout.rows_at.device
    numbers = torch.arange(len(layout.rows_at), device=device)
    row_of = torch.full((S,), -1, device=device)
    row_of[layout.rows_at] = numbers[:, None].expand_as(layout.rows_at)

    def sees(batch: Any, head: Any, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & ((key < P) | (row_of[key] == row_of[query]))

    mask: Any = create_block_mask(sees, None, None, S, S, device=device)
    compiled: Any = torch.compile(flex_attention)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        states = [x.transpose(0, 1)[None] for x in (q, k, v)]
        out: Tensor = compiled(*states, block_mask=mask, enable_gqa=q.shape[1] != k.shape[1])
        return out[0].transpose(0, 1)

    return attend


def _timed(attend: Callable[..., Tensor], states: Sequence[Tensor], rounds: int) -> tuple[Spread, int]:
    """Milliseconds forward and backward, and the bytes that are kept in between."""
    states = [x.requires_grad_() for x in states]
    times = []
    for _ in range(rounds + 1):
        begin = time.perf_counter()
        gradients = torch.autograd.grad(attend(*states).sum(), states)
        float(gradients[0].sum())  # waits for a GPU
        times.append(1000 * (time.perf_counter() - begin))
    storages: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        attend(*states)
    return Spread.of(times[1:]), sum(storages.values())
