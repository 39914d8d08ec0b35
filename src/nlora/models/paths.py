"""How a run's batches go through its model; `nlora.runs.preflight` finds out what is right for a model."""

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
    leans: whether training uses faster modules on a CPU (`nlora.training.cpu_modules`).
    continues: whether tokens after a prompt reuse its stored keys and values, instead of computing it again.
    generate: how prompts share a batch of transformers' own `generate`.
    notes: one line for each way that was tried and gave different numbers.
    """

    train: Rows
    leans: bool
    read: Rows
    continues: bool
    generate: Rows
    notes: tuple[str, ...] = ()


def usual_paths(model: nn.Module, *, untried: bool = False) -> Paths:
    """The fastest paths that a model's properties allow, without trying them on a run's texts.

    untried: do not even try packing on a few tokens.
    """
    rows: Rows = "packed" if (may_pack if untried else packing_is_exact)(model) else "padded"
    return Paths(rows, True, rows, keeps_all_tokens(model), "padded")
