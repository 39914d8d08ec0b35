"""Of every entry, the value that is largest in magnitude: how MagMax makes one update of several."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def magmax(updates: Iterable[Tensor]) -> Tensor:
    """Of every entry, the value of the update in which it is largest in magnitude (arXiv 2407.06322).

    updates: at least one, all of one shape; read one after another, so a generator need not keep them. Of a value and
    its opposite, the first is taken.

    >>> magmax(iter([torch.tensor([1.0, -3.0]), torch.tensor([-2.0, 1.0])]))
    tensor([-2., -3.])
    """
    rest = iter(updates)
    merged = next(rest).clone()
    for update in rest:
        torch.where(update.abs() > merged.abs(), update, merged, out=merged)
    return merged
