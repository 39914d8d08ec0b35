"""Σ|B·A| of many modules of the same shape, and its gradients, from one pass over all their updates in blocks.

With D = B·A and S = sign(D), dA = Bᵀ·S and dB = S·Aᵀ. A block of D is computed, replaced by its sign, and used twice
before the next one overwrites it. Three things make that fast on a CPU:

- A block is a batched product with one item per thread: whole modules, or ranges of rows of a large one. A product of
  rank 8 is too small for threads to share.
- B is transposed first: (r, rows) is faster than (rows, r), both as a factor of D and as the result dBᵀ.
- A block is so small that each thread's part of it stays in the second-level cache.

torch.compile is not used: it needs a C++ compiler on the user's machine and seconds for every shape.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

# Entries of D per CPU thread, 1 MiB of float32. Measured on two cores with 2 MiB of second-level cache each, r = 8: for
# 1024 x 1024 and 4096 x 4096, 5 % faster than three quarters of it. In an earlier version of this code, 2**16 took up
# to 45 % longer than the best value, because of its many calls, and 2**19 up to 50 % longer, because of the cache.
CPU_BLOCK_ENTRIES = 2**18
# On a GPU, a block is one launch for all modules that fit: 16 MiB of float32, which fits into the second-level cache of
# a data-center GPU and keeps it busy. Chosen by this reasoning and not measured yet.
GPU_BLOCK_ENTRIES = 2**22
# Limits the copies of factors.
MODULES_AT_ONCE = 32


def walk(
    As: Sequence[Tensor], Bs: Sequence[Tensor], need_A: bool, need_B: bool
) -> tuple[Tensor, Sequence[Tensor | None], Sequence[Tensor | None]]:
    """Σ_m Σ|B_m·A_m|, and its gradients for each A and each B if needed (else None).

    As: (r, in) each; Bs: (out, r) each; all of the same shape, on one device. Half-precision factors are computed in
    float32, and loss and gradients are float32 then. The sign of an entry that is exactly 0 is 0.

    >>> loss, (dA,), (dB,) = walk([torch.ones(1, 3)], [torch.ones(2, 1)], need_A=True, need_B=False)
    >>> loss, dA, dB
    (tensor(6.), tensor([[2., 2., 2.]]), None)
    """
    terms: list[Tensor] = []
    dAs: list[Tensor | None] = []
    dBs: list[Tensor | None] = []
    with torch.autocast(As[0].device.type, enabled=False):
        for start in range(0, len(As), MODULES_AT_ONCE):
            A = working(torch.stack(list(As[start : start + MODULES_AT_ONCE])))  # (n, r, in)
            B = working(torch.stack(list(Bs[start : start + MODULES_AT_ONCE])))  # (n, out, r)
            loss, dA, dB = _stacked(A, B, need_A, need_B)
            terms.append(loss)
            dAs += [None] * len(A) if dA is None else dA.unbind()
            dBs += [None] * len(A) if dB is None else dB.unbind()
    return (terms[0] if len(terms) == 1 else torch.stack(terms).sum()), dAs, dBs


def _stacked(A: Tensor, B: Tensor, need_A: bool, need_B: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The same for stacked factors. A: (n, r, in); B: (n, out, r)."""
    (n, r, n_in), out = A.shape, B.shape[1]
    parts, part_rows, rows, at_once = _plan(n, out, n_in, A.device)
    padding = parts * part_rows - out  # rows of zeros, whose entries and signs are 0
    padded = F.pad(B, (0, 0, 0, padding)) if padding else B
    Bt = padded.reshape(n * parts, part_rows, r).mT.contiguous()  # (n·parts, r, part_rows)
    # The parts of one module share its A without a copy.
    At = A if parts == 1 else A[:, None].expand(n, parts, r, n_in).flatten(0, 1)  # (n·parts, r, in)

    dA = torch.zeros_like(At, memory_format=torch.contiguous_format) if need_A else None
    dBt = torch.empty_like(Bt) if need_B else None
    loss = A.new_zeros(())
    buffer = A.new_empty(at_once * rows * n_in)
    for i in range(0, n * parts, at_once):
        a = At[i : i + at_once]  # (k, r, in), the last may have fewer
        for j in range(0, part_rows, rows):
            b = Bt[i : i + at_once, :, j : j + rows]  # (k, r, rows)
            shape = len(b), b.shape[2], n_in
            D = torch.bmm(b.mT, a, out=buffer[: shape[0] * shape[1] * shape[2]].view(shape))  # (k, rows, in)
            if dA is None and dBt is None:
                loss += D.abs_().sum()
                continue
            S = D.sign_()
            if dA is not None:
                dA[i : i + at_once].baddbmm_(b, S)
            if dBt is not None:  # with out=, a range of rows would take torch's slow path
                dBt[i : i + at_once, :, j : j + rows] = torch.bmm(a, S.mT)

    if dA is not None and parts > 1:
        dA = dA.view(n, parts, r, n_in).sum(1)  # (n, r, in)
    dB = None
    if dBt is not None:
        dB = dBt.mT.reshape(n, parts * part_rows, r)[:, :out].contiguous()  # (n, out, r)
    # Σ|D| = Σ S∘(B·A) = Σ dA∘A = Σ dB∘B, so D is not needed again. NaN and inf arrive through the factors.
    if dA is not None:
        loss = (dA * A).sum()
    elif dB is not None:
        loss = (dB * B).sum()
    return loss, dA, dB


def _plan(n: int, out: int, n_in: int, device: torch.device) -> tuple[int, int, int, int]:
    """How n updates of (out, in) are split: parts per module, rows per part, rows and parts per block."""
    cpu = device.type == "cpu"
    entries = CPU_BLOCK_ENTRIES if cpu else GPU_BLOCK_ENTRIES
    threads = torch.get_num_threads() if cpu else 1
    whole = n * out * n_in
    # One part per thread at most, and no more parts than blocks are needed or rows exist.
    parts = max(1, min(_ceil(threads, n), _ceil(whole, entries), out))
    part_rows = max(1, _ceil(out, parts))
    part_entries = max(1, part_rows * n_in)
    rows = _ceil(part_rows, min(part_rows, _ceil(part_entries, entries)))  # blocks of similar size
    at_once = min(n * parts, threads * max(1, entries // part_entries))
    return parts, part_rows, rows, at_once


def _ceil(a: int, b: int) -> int:
    return -(-a // b)


def working(factors: Tensor) -> Tensor:
    """The factors in the precision of the sums: at least float32."""
    return factors.float() if factors.dtype in (torch.bfloat16, torch.float16) else factors
