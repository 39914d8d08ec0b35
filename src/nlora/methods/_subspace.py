"""Orthonormal bases of the directions that earlier tasks used, and what is left of a space outside them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_IN_SPAN = 1e-3
"""What may be left of a row outside a span, as a share of its length, for the row to count as a part of the span."""


def extended(G: Tensor, values: Tensor, directions: Tensor, total: Tensor, share: float) -> Tensor:
    """G, with as many leading directions of a matrix R as it takes to have at least a share of ‖R‖²_F.

    G: (k, n) with orthonormal rows; the result has more. values: (m,) the squared singular values of R outside G,
    largest first. directions: (m, n) their singular vectors, as orthonormal rows. total: ‖R‖²_F. All are float64.
    What is new is `orthonormal_off` of the directions, computed for all of them together.

    >>> none, R = torch.zeros(0, 3).double(), torch.diag(torch.tensor([3.0, 2.0, 1.0])).double()
    >>> G = extended(none, torch.tensor([9.0, 4.0, 1.0]), R.sign(), R.square().sum(), share=0.9)
    >>> bool((G == torch.eye(3)[:2]).all())
    True
    """
    # R comes from float32 numbers: the last millionth of its energy is mostly rounding.
    lacking = (share - 1e-6) * total - (total - values.sum())
    count = int((values.cumsum(0) < lacking).sum()) + 1 if lacking > 0 else 0
    rows = directions[:count]
    for _ in range(2):  # twice, because the first difference may be mostly rounding
        rows = rows - (rows @ G.mT) @ G
    new = torch.linalg.qr(rows[rows.norm(dim=1) > _IN_SPAN].mT).Q.mT
    return torch.cat([G, new * new.gather(1, new.abs().argmax(1, keepdim=True)).sign()])


def orthonormal_off(G: Tensor, candidates: Sequence[Tensor], count: int) -> Tensor:
    """At most `count` orthonormal rows (m, n), orthogonal to those of G, from the candidates in their order.

    G: (k, n) with orthonormal rows. A candidate in the span of G and those before is left out. The largest entry of a
    row is positive, since the sign of a singular vector is the library's choice.
    """
    basis = G
    for candidate in candidates:
        if len(basis) == len(G) + count:
            break
        row = candidate
        for _ in range(2):  # twice, because the first difference may be mostly rounding
            row = row - basis.mT @ (basis @ row)
        if row.norm() > _IN_SPAN * candidate.norm():
            largest = row[row.abs().argmax()]
            basis = torch.cat([basis, (row / largest.sign() / row.norm())[None]])
    return basis[len(G) :]
