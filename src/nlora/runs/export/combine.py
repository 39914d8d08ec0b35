"""Several tasks' updates made one: their sum, or a merge that works on the entries.

>>> one = {"q": LoraFactors(torch.ones(1, 2), torch.tensor([[1.0], [-3.0]]), 1.0)}
>>> two = {"q": LoraFactors(torch.ones(1, 2), torch.tensor([[2.0], [1.0]]), 1.0)}
>>> CombinedUpdate([one, two], "magmax")["q"].tolist()
[[2.0, 2.0], [-3.0, -3.0]]

`sum` is what the run's model computes; it stays low-rank. All other merges look at each entry of ΔW, so their result
has no low rank. Every update has weight 1. ties, dare_ties, dare_linear and magnitude_prune are PEFT's own functions,
applied to ΔW (PEFT's add_weighted_adapter applies them to A and B, unless its name ends with _svd).
"""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from nlora.kernels.largest_magnitude import magmax
from nlora.models.lora_factors import AdapterState, LoraFactors, stack

Update = LoraFactors | Tensor
"""The update of one module: factors, or the whole ΔW (out, in)."""

SUM = "sum"
_PARALLEL = 0.9995


class CombinedUpdate(Mapping[str, Update]):
    """One update by module name; each is computed when it is read, always the same.

    how: one of MERGES. density: the share of each update's entries that the pruning merges keep.
    seed: what the dropped entries of dare_ties and dare_linear are drawn from, together with the module's name.
    """

    def __init__(
        self, states: Sequence[AdapterState], how: str = SUM, density: float = 1.0, seed: int = 0
    ) -> None:
        self._states, self._how, self._density, self._seed = states, how, density, seed
        self._names = list(dict.fromkeys(name for state in states for name in state))

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, name: str) -> Update:
        if self._how == SUM:
            return stack([state[name] for state in self._states if name in state])
        # A task whose adapter does not have this module leaves it unchanged.
        unchanged = torch.zeros(self._shape(name))
        dense = [state[name].update().float() if name in state else unchanged for state in self._states]
        if self._how == "magmax":
            return magmax(dense)
        return slerp(dense) if self._how == "slerp" else self._by_peft(name, dense)

    def full_rank(self) -> int:
        """The largest rank that a module's update can have."""
        if self._how == SUM:
            ranks = (sum(s[n].A.shape[0] for s in self._states if n in s) for n in self._names)
            return max(min(rank, *self._shape(name)) for rank, name in zip(ranks, self._names, strict=True))
        return max(min(self._shape(name)) for name in self._names)

    def _shape(self, name: str) -> tuple[int, int]:
        return next(state[name].shape for state in self._states if name in state)

    def _by_peft(self, name: str, dense: list[Tensor]) -> Tensor:
        from peft.utils import merge_utils

        merge: Callable[..., Tensor] = getattr(merge_utils, self._how)
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The density .* no pruning", UserWarning)  # density 1
            torch.default_generator.manual_seed(zlib.crc32(f"{self._seed}/{name}".encode()))
            return merge(dense, torch.ones(len(dense)), self._density)


def dense_update(update: Update) -> Tensor:
    """ΔW (out, in), float32."""
    return update.update().float() if isinstance(update, LoraFactors) else update


def slerp(updates: Sequence[Tensor]) -> Tensor:
    """Spherical interpolation halfway between two updates, each taken as one vector.

    More are taken in order, pair by pair: the k-th is mixed in with a share of 1/k, so that all count alike. Where two
    directions are nearly the same, opposite, or one is zero, they are interpolated linearly.
    """
    merged = updates[0].clone()
    for k, update in enumerate(updates[1:], start=2):
        t = 1 / k
        # In float64, because the products of small updates are zero in float32.
        a, b = merged.flatten().double(), update.flatten().double()
        norms = float(a.norm() * b.norm())
        cosine = float(a @ b) / norms if norms else 1.0
        if abs(cosine) > _PARALLEL:
            merged = (1 - t) * merged + t * update
            continue
        angle = torch.arccos(torch.tensor(cosine))
        merged = (torch.sin((1 - t) * angle) * merged + torch.sin(t * angle) * update) / torch.sin(angle)
    return merged
