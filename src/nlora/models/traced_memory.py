"""How many bytes a computation needs, found out without doing it.

A model's skeleton gets fake tensors (torch's `FakeTensorMode`): they have shapes, types and storages, but no memory.
Its own code then runs on them, whatever its family, and every storage is counted while it is alive. This counts what
autograd keeps for the backward pass, and what is only there for a moment.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from nlora.models.inspection import Batch


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A block in which the bytes of new tensors are counted, each storage once.

    now: bytes alive. peak: the most that were alive at once. Tensors from before the block do not count.

    >>> before = torch.ones(4)
    >>> with LiveBytes([before]) as counted:
    ...     after = before * 2 + 1
    >>> counted.now, counted.peak
    (16, 32)
    """

    def __init__(self, before: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in before}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._see(tensor.untyped_storage())
        return out

    def _see(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def give_fake_tensors(model: nn.Module, mode: FakeTensorMode, dtype: torch.dtype | None = None) -> None:
    """Replace a model's tensors with fake ones on the CPU. Shared tensors stay shared, and fake ones as they are.

    dtype: of all parameters in floating point; None: their own.
    """
    made: dict[int, Tensor] = {}
    with mode:
        for module in model.modules():
            holders: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
            for tensors in holders:
                for name, old in tensors.items():
                    if old is None or isinstance(old, FakeTensor):
                        continue
                    if id(old) not in made:
                        is_parameter = isinstance(old, nn.Parameter)
                        number = dtype if dtype and is_parameter and old.is_floating_point() else old.dtype
                        new = torch.empty(old.shape, dtype=number, device="cpu")
                        made[id(old)] = nn.Parameter(new, old.requires_grad) if is_parameter else new
                    tensors[name] = made[id(old)]


def held_tensors(model: nn.Module) -> list[Tensor]:
    """The parameters and buffers of a model, each once."""
    return [*model.parameters(), *model.buffers()]


def held_bytes(tensors: Iterable[Tensor]) -> int:
    """The bytes of these tensors' storages, shared ones once."""
    storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def fake_batch(batch: Batch, mode: FakeTensorMode) -> Batch:
    """A batch of fake tensors of the same shapes."""
    found: Batch = tree_map(mode.from_tensor, batch)
    return found


def layer_lists(model: nn.Module) -> list[nn.ModuleList]:
    """The lists of a model's layers, if each list's layers are alike; empty if the model is built in another way."""
    lists = [
        m
        for m in model.modules()
        if isinstance(m, nn.ModuleList) and len(m) > 3 and not _inside_others(m, model)
    ]
    return lists if all(len({_shape(layer) for layer in layers}) == 1 for layers in lists) else []


def _inside_others(layers: nn.ModuleList, model: nn.Module) -> bool:
    return any(
        other is not layers and layers in set(other.modules())
        for other in model.modules()
        if isinstance(other, nn.ModuleList)
    )


def _shape(layer: nn.Module) -> tuple[Any, ...]:
    """What two layers must share to need the same memory. T5's first layer has a small table in addition."""
    shapes = {
        name: tuple(p.shape) for name, p in layer.named_parameters() if "relative_attention" not in name
    }
    return type(layer), tuple(sorted(shapes.items()))
