"""Products of bfloat16 matrices on a processor without instructions for them.

torch multiplies such matrices entry by entry there, up to 300 times as slowly as float32 ones (PyTorch issue 146508).
Other processors have instructions (AVX512-BF16, AMX) that sum up in float32 and round the result once. The same is done
here: the matrices are widened to float32 and multiplied, and the result is rounded. So the numbers are those of such a
processor up to the order of a sum, in about the time of float32.

A matrix is widened in blocks that stay in the processor's cache, so a bfloat16 model still takes half the memory.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

BLOCK_NUMBERS = 2**20
"""Of a widened block: 4 MiB. 4 and 8 MiB were fastest of 256 KiB to 32 MiB (`benchmarks/products.py --blocks`)."""
_libraries: list[torch.library.Library] = []
"""torch forgets a kernel once its library is gone."""


@cache
def widen_products() -> bool:
    """From now on, this process multiplies bfloat16 matrices on its CPU in float32, if the processor needs that.

    Returns whether it does. A single row times a linear layer's weight stays with torch, which is fast there; so do
    products that torch.compile has compiled. Needs torch 2.9; with an older one, nothing changes.
    """
    if multiplies_bfloat16() or not hasattr(torch.library, "get_kernel"):
        return False
    library = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]
    register(library)
    _libraries.append(library)
    return True


def multiplies_bfloat16() -> bool:
    """Whether torch has fast products of bfloat16 matrices for this processor."""
    try:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except (AttributeError, RuntimeError):  # a build without oneDNN, as for Macs
        return True


def register(library: torch.library.Library) -> None:
    """Give torch these products. library: of "aten" and kind "IMPL"; they last as long as it does."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"(?s).*Overriding a previously registered kernel")
        for product in (mm, addmm, addmm_, bmm, baddbmm):
            ways = {"": _narrow_ones} if product is addmm_ else {"": _narrow_ones, ".out": _into}
            for form, way in ways.items():
                name = product.__name__ + form
                original = torch.library.get_kernel(f"aten::{name}", "CPU").call_boxed
                own = partial(way, product, original)
                library.impl(name, own, "CPU", with_keyset=True, allow_override=True)  # type: ignore[no-untyped-call]


def _narrow_ones(
    product: Callable[..., Tensor], original: Callable[..., Tensor], keys: Any, *args: Any, **kwargs: Any
) -> Tensor:
    """One of the products below for bfloat16 matrices, torch's own for all others."""
    return product(*args, **kwargs) if _is_slow(args) else original(keys, *args, **kwargs)


def _into(
    product: Callable[..., Tensor],
    original: Callable[..., Tensor],
    keys: Any,
    *args: Any,
    out: Tensor,
    **kwargs: Any,
) -> Tensor:
    """The same written into `out`, as torch's own product of several matrices (`grouped_mm`, of experts) does."""
    if out.dtype == torch.bfloat16 and _is_slow(args):
        found = product(*args, **kwargs)
        if found.shape == out.shape:  # else torch resizes it, or refuses to
            return out.copy_(found)
    return original(keys, *args, out=out, **kwargs)


def _is_slow(matrices: Sequence[Tensor]) -> bool:
    """Whether they are bfloat16, and torch has no fast way to multiply the last two."""
    *_, left, right = matrices
    # It has one for a row times a matrix whose columns are contiguous, as those of a transposed weight.
    fast = right.dim() == 2 and left.shape[0] == 1 and right.stride(0) == 1
    return not fast and all(matrix.dtype == torch.bfloat16 for matrix in matrices)


def mm(left: Tensor, right: Tensor) -> Tensor:
    """left·right, both bfloat16, as `torch.mm` defines it; so are those below.

    >>> mm(torch.ones(2, 3).bfloat16(), torch.ones(3, 1).bfloat16())
    tensor([[3.],
            [3.]], dtype=torch.bfloat16)
    """
    out = left.new_empty(left.shape[0], right.shape[1])
    wide = left.float()
    for columns in _blocks(right):
        out[:, columns] = torch.mm(wide, right[:, columns].float())
    return out


def addmm(added: Tensor, left: Tensor, right: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """beta·added + alpha·left·right, rounded once."""
    out = left.new_empty(left.shape[0], right.shape[1])
    added, wide = added.expand_as(out), left.float()
    for columns in _blocks(right):
        block = added[:, columns].float()
        out[:, columns] = torch.addmm(block, wide, right[:, columns].float(), beta=beta, alpha=alpha)
    return out


def addmm_(added: Tensor, left: Tensor, right: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """The same in place of `added`."""
    return added.copy_(addmm(added, left, right, beta=beta, alpha=alpha))


def bmm(left: Tensor, right: Tensor) -> Tensor:
    """(b, n, k), (b, k, m) -> (b, n, m)."""
    return torch.bmm(left.float(), right.float()).bfloat16()


def baddbmm(added: Tensor, left: Tensor, right: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """beta·added + alpha·left·right for each of a batch, rounded once."""
    return torch.baddbmm(added.float(), left.float(), right.float(), beta=beta, alpha=alpha).bfloat16()


def _blocks(right: Tensor) -> Iterator[slice]:
    """Columns that are widened together."""
    at_once = max(1, BLOCK_NUMBERS // max(1, right.shape[0]))
    return (slice(i, i + at_once) for i in range(0, right.shape[1], at_once))
