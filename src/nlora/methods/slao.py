"""SLAO: one adapter trained on from an orthonormal A, and a merged one, kept beside it, that answers.

Source: arXiv 2512.23017 (ICLR 2026), Algorithm 1. Task 1 is trained like LoRA. Task t starts from the factors that task
t-1 ended with, A_{t-1} and B_{t-1}, and trains both on W + s·B·A. With the QR decomposition Q·R of A_{t-1}ᵀ
and the signs D of R's diagonal,

    A <- D·Qᵀ,  B <- B_{t-1}

The model that answers, for every task, is W + s·B_m·A_m. After task t:

    A_m <- A_t,  B_m <- B_m + (B_t - B_m) / √t,  with B_m = B_1 after task 1

A stage's folder holds what it trained, (A_t, B_t). B_m is computed from the B of all stages whenever the model
answers, so a run that resumes, and a stage that is evaluated or repaired, has the same one.

Departures: the paper keeps two adapters, whatever the number of tasks. Here the stages' adapters stay, as for the other
methods. There is no code of the authors to compare with; where R has a zero on its diagonal, the sign is +1.

Pitfalls:
- The adapter that is trained next is not the merged one. Training starts with another loss than the model answers
  with, also because an orthonormal A has other lengths than A_{t-1}.
- B_m sums parts that were trained with other A's. Only the last B belongs to A_m.
- No stage's adapter is the model; `nlora export` writes the merged one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from nlora.errors import Problem
from nlora.methods._merge import LatestMerge
from nlora.methods.base import Method, MethodOptions

if TYPE_CHECKING:
    from torch import Tensor

    from nlora.config.schema import LoraOptions
    from nlora.models.lora_adapter import AdapterState, ModuleShape
    from nlora.models.trainable import Trainable


class Slao(Method):
    """Trains the previous stage's B on an orthonormal basis of its A, and answers with a merge of all B."""

    updates = "continued"
    merges = True

    def __init__(self, options: MethodOptions) -> None:
        super().__init__(options)
        self._merge = LatestMerge(merged)

    def check(self, modules: Sequence[ModuleShape]) -> list[Problem]:
        narrow = min(modules, key=lambda m: m.in_features, default=None)
        if narrow is None or narrow.r <= narrow.in_features:
            return []
        what = f"slao needs a rank of at most {narrow.in_features}, the number of inputs of {narrow.name}"
        return [Problem("lora.r", f"{what}, not {narrow.r}")]

    def check_adopted(self, update: AdapterState, lora: LoraOptions) -> str | None:
        return "slao merges adapters of which each was trained on from the one before"

    def active_for(self, updates: Sequence[AdapterState], index: int) -> Sequence[AdapterState]:
        return self._merge.of(updates)

    def begin_task(self, adapter: Trainable, earlier: Sequence[AdapterState]) -> None:
        if not earlier:
            return
        from nlora.models.lora_factors import LoraFactors

        adapter.load_state(
            {name: LoraFactors(orthonormal(f.A), f.B, f.scaling) for name, f in earlier[-1].items()}
        )


def orthonormal(A: Tensor) -> Tensor:
    """An orthonormal basis of the rows of A (r, in), r <= in, in the order and with the signs of Gram and Schmidt.

    >>> import torch
    >>> A = torch.tensor([[0.0, 2.0, 0.0], [3.0, 1.0, 0.0]])
    >>> torch.equal(orthonormal(A), torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]))
    True
    """
    import torch

    Q, R = torch.linalg.qr(A.double().mT)  # (in, r), (r, r)
    return torch.where(R.diagonal() < 0, -Q, Q).mT.to(A.dtype).contiguous()


def merged(updates: Sequence[AdapterState]) -> AdapterState:
    """The last A, and B_m as each B in turn moves it by 1/√t."""
    from nlora.models.lora_factors import LoraFactors

    found = {}
    for name, last in updates[-1].items():
        B = updates[0][name].B.double()
        for t, update in enumerate(updates[1:], start=2):
            B = B + (update[name].B.double() - B) / math.sqrt(t)
        found[name] = LoraFactors(last.A, B.to(last.B.dtype), last.scaling)
    return found
