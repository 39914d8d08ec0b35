"""The perplexity of a plain text: how well a causal model predicts it, token by token.

The text is cut into windows that do not overlap. A window begins with the tokenizer's begin tokens, if it has any, and
each of its text tokens but the first is predicted from those before it. With nll_j the negative log-likelihood of the
j-th of N predicted tokens, in nats:

- loss: 1/N Σ_j nll_j over all windows, so that each token counts the same
- perplexity: exp of the loss
- bits per byte: loss / ln 2, times the tokens of the text, divided by its bytes

Perplexity is per token, so it compares only models with the same tokenizer. Bits per byte compare all models on a text.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nlora.models.shares import share_of

LONGEST_WINDOW = 1024
"""In tokens; shorter if the model has fewer positions."""
_ROWS = 128
"""Positions whose logits are made float32 together: the logits of a window may be larger than the model."""


def windows(text: Sequence[int], begin: Sequence[int], positions: int | None) -> list[list[int]]:
    """The windows of a text, each with the begin tokens; a rest of one token, which predicts nothing, is left out.

    text: its tokens, without special ones. positions: the most that the model has.

    >>> windows([5, 6, 7, 8, 9], begin=[1], positions=3)
    [[1, 5, 6], [1, 7, 8]]
    """
    size = max(min(LONGEST_WINDOW, positions or LONGEST_WINDOW) - len(begin), 2)
    cut = (text[start : start + size] for start in range(0, len(text), size))
    return [[*begin, *part] for part in cut if len(part) > 1]


def predicted(rows: Sequence[Sequence[int]], begin: int) -> int:
    """The number of tokens that are predicted in windows with this many begin tokens each."""
    return sum(len(row) - begin - 1 for row in rows)


@torch.no_grad()
def mean_loss(model: nn.Module, rows: Sequence[Sequence[int]], begin: int) -> float:
    """The loss of the module's docstring, in nats, by the model as it is. It may be infinite or NaN.

    rows: from `windows`; one or more. begin: how many begin tokens each has.

    Several processes share the windows, and each gets the same number. Of a sharded model, each pass takes them all.
    """
    share = share_of(model)
    mine = [_loss_of_window(model, row, begin) for row in share.of(rows)]
    return math.fsum(share.together(mine)) / predicted(rows, begin)


def _loss_of_window(model: Any, row: Sequence[int], begin: int) -> float:
    """The sum over a window."""
    ids = torch.tensor([row], device=next(model.parameters()).device)
    logits: Tensor = model(input_ids=ids, use_cache=False).logits[0, begin:-1]  # (N, V)
    targets = ids[0, begin + 1 :]
    total = 0.0
    for some, wanted in zip(torch.split(logits, _ROWS), torch.split(targets, _ROWS), strict=True):
        losses = nn.functional.cross_entropy(some.float(), wanted, reduction="none")
        total += float(losses.double().sum())
    return total
