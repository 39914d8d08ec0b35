"""How a run's batches go through its model; `nlora.runs.preflight` finds out what is right for a model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from torch import nn

from nlora.models.inspection import keeps_all_tokens
from nlora.models.packed_attention import may_pack, packing_is_exact
from nlora.models.positions import read_alike_up_to

Rows = Literal["packed", "padded", "single"]
"""How examples share a batch: in one row of tokens, in padded rows, or not at all."""


@dataclass(frozen=True, slots=True)
class FastPaths:
    """How a run's batches go through its model.

    training, prefill, generation: how examples share a training batch, prompts a scoring batch, and prompts a batch of
        transformers' own `generate`.
    fast_modules: whether training uses faster modules (`nlora.training.fast_modules`).
    kv_cache: whether tokens after a prompt reuse its stored keys and values, instead of computing it again.
    notes: one line for each way that was tried and gave different numbers.
    """

    training: Rows
    fast_modules: bool
    prefill: Rows
    kv_cache: bool
    generation: Rows
    notes: tuple[str, ...] = ()


def agreed(found: Sequence[FastPaths]) -> FastPaths:
    """The paths that are right for every process, given those that each has found."""
    order: tuple[Rows, ...] = get_args(Rows)

    def safest(rows: Iterable[Rows]) -> Rows:
        return max(rows, key=order.index)

    return FastPaths(
        training=safest(paths.training for paths in found),
        fast_modules=all(paths.fast_modules for paths in found),
        prefill=safest(paths.prefill for paths in found),
        kv_cache=all(paths.kv_cache for paths in found),
        generation=safest(paths.generation for paths in found),
        notes=tuple(dict.fromkeys(note for paths in found for note in paths.notes)),
    )


def default_paths(model: nn.Module, *, untried: bool = False, longest: int = 0) -> FastPaths:
    """The fastest paths that a model's properties allow, without trying them on a run's texts.

    untried: do not even try packing on a few tokens. longest: the most tokens that a text may have, if known.
    """
    if (alike := read_alike_up_to(model)) is not None and longest > alike:
        note = (
            f"texts run one by one: how this model reads a text depends on the longest one beside it if that is beyond "
            f"{alike} tokens (rotary positions that are rescaled), and train.max_source_tokens allows such texts"
        )
        return FastPaths("single", True, "single", keeps_all_tokens(model), "single", (note,))
    rows: Rows = "packed" if (may_pack if untried else packing_is_exact)(model) else "padded"
    return FastPaths(rows, True, rows, keeps_all_tokens(model), "padded")
