"""MagMax: tasks are learned one after another, and of every entry the model keeps the largest change so far.

Source: arXiv 2407.06322 (ECCV 2024). Training is sequential: it is exactly incremental LoRA, with a fresh adapter per
task on a backbone that contains the earlier ones. The task vector τ_t is how far the weights are from the original ones
after task t, and the model that answers, for every task, is

    W + scale · τ,   τ[a, b] = the τ_t[a, b] of largest magnitude,   τ_t = Σ_{i<=t} s·B_i·A_i,   t = 1 ... so far

A stage's folder holds its adapter, as with inclora, and τ is computed from all of them when the model answers. The
first stage's model is that of inclora.

Departures: the paper fine-tunes all parameters; here the adapted layers move, by low-rank updates. It applies the scale
to several values and compares; the default here is 1. Of a value and its opposite, the earlier is taken, not the later.

Pitfalls:
- The model that answers is not the one in training: the next task starts from the sum, W + τ_t.
- τ has no low rank. It takes one float32 number for each entry of the adapted layers while the model answers, and where
  updates cannot be merged into the weights (quantized or 16-bit ones), each layer computes a second product of its own
  size.
- `nlora export --merge magmax` on another method's run takes the largest of the stages' own updates instead, s·B_t·A_t.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from nlora.methods._merge import LatestMerge
from nlora.methods.base import Method, MethodOptions

if TYPE_CHECKING:
    from torch import Tensor

    from nlora.models.lora_adapter import AdapterState, ModuleShape


class MagmaxOptions(MethodOptions):
    """How much of the merged update the model gets."""

    scale: float = Field(
        1.0,
        gt=0,
        allow_inf_nan=False,
        description="λ, which multiplies the merged update. The released script for eight image data sets is said to "
        "use 0.5.",
    )


class Magmax(Method[MagmaxOptions]):
    """Answers with the entries of largest magnitude of all models so far."""

    merges = True

    def __init__(self, options: MagmaxOptions) -> None:
        super().__init__(options)
        self._merge = LatestMerge(functools.partial(merged, scale=options.scale))

    def kept_bytes(self, modules: Sequence[ModuleShape]) -> int:
        return 4 * sum(m.entries for m in modules)  # the merged update, while the model answers

    def active_for(self, updates: Sequence[AdapterState], index: int) -> Sequence[AdapterState]:
        return self._merge.of(updates)

    def release(self) -> None:
        self._merge.forget()  # it is large, and not needed while the next task trains


def merged(updates: Sequence[AdapterState], scale: float = 1.0) -> AdapterState:
    """scale · τ as factors of full rank: one is the matrix itself, the other an identity, which all modules share."""
    import torch

    from nlora.kernels.largest_magnitude import magmax
    from nlora.models.lora_factors import LoraFactors

    identity = functools.cache(torch.eye)
    found = {}
    for name in dict.fromkeys(name for update in updates for name in update):
        tau = magmax(_task_vectors(name, updates)).mul_(scale)  # (out, in)
        out, n_in = tau.shape
        A, B = (tau, identity(out)) if out < n_in else (identity(n_in), tau)
        found[name] = LoraFactors(A, B, 1.0)
    return found


def _task_vectors(module: str, updates: Sequence[AdapterState]) -> Iterator[Tensor]:
    """τ_1, τ_2, ... of a module (out, in), float32. An update without the module leaves it as it was."""
    total: Tensor | None = None
    for update in updates:
        if module in update:
            new = update[module].update().float()
            total = new if total is None else total + new
        if total is not None:
            yield total
