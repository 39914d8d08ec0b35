"""How a run's batches go through its model; which of it is right for a model, `nlora.runs.preflight` finds out.

paths = usual_paths(model)          # Paths(train="packed", leans=True, read="packed", continues=True, ...)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from nlora.models.inspection import keeps_all_tokens
from nlora.models.packed_attention import may_pack, packing_is_exact

Rows = Literal["packed", "padded", "single"]
"""How examples share a batch: in one row of tokens, in padded rows, or not at all."""


@dataclass(frozen=True, slots=True)
class Paths:
    """How a run's batches go through its model.

    train, read: how the examples of a training batch, and the prompts of a scoring batch, share it.
    leans: whether modules are exchanged for leaner ones while an adapter trains.
    continues: whether what follows a prompt runs on its kept keys and values; else the whole prompt runs again.
    generate: how prompts share a batch of transformers' own `generate`.
    notes: what was tried and differs, a line each.
    """

    train: Rows
    leans: bool
    read: Rows
    continues: bool
    generate: Rows
    notes: tuple[str, ...] = ()


def usual_paths(model: nn.Module, *, untried: bool = False) -> Paths:
    """The fastest paths that a model's own facts allow, without a try-out on a run's texts.

    untried: not even packing has been tried, on a few tokens.
    """
    rows: Rows = "packed" if (may_pack if untried else packing_is_exact)(model) else "padded"
    return Paths(rows, True, rows, keeps_all_tokens(model), "padded")
