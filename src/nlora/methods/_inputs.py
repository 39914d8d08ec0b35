"""The second moments of what linear layers read: which directions of their inputs a task uses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from nlora.data.task import TokenizedExample
from nlora.methods._passes import answers_of, passes
from nlora.models import processes
from nlora.models.inspection import is_sharded
from nlora.models.target_modules import in_and_out, linear_layer

Moments = dict[tuple[str, ...], Tensor]
"""Σ x·xᵀ (in, in), by the names of all layers that read the same x."""


def spaced(examples: Sequence[TokenizedExample], count: int) -> Sequence[TokenizedExample]:
    """At most this many of the examples, evenly spaced."""
    n = len(examples)
    return [examples[i * n // count] for i in range(count)] if n > count else examples


def input_moments(
    model: nn.Module, modules: Sequence[str], examples: Sequence[TokenizedExample], pad_id: int
) -> Moments:
    """Σ x·xᵀ over the tokens of the examples, prompts and answers, for the input x of every named layer.

    float32 on the CPU; the sums are made on the device of the layer. Layers that are given the same tensor share one
    sum. Several processes share the examples, and each gets the sum over all of them. Restores the model's mode.
    """
    layers = {name: linear_layer(model, name) for name in modules}
    alone = is_sharded(model)  # then all processes have to make the same passes
    mine = examples if alone else examples[processes.rank() :: processes.size()]
    training = model.training
    model.eval()
    try:

        def read(some: Sequence[TokenizedExample]) -> None:
            answers_of(model, some, pad_id, every_token=True)

        with torch.no_grad():
            groups = _same_input(layers, lambda: read(examples[:1]))
            sums = {names: torch.zeros(0) for names in groups}
            together = passes(model, mine)
            with _hooked({names: layers[names[0]] for names in groups}, lambda key, x: _add(sums, key, x)):
                for some in together:
                    read(some)
    finally:
        model.train(training)
    for names, found in sums.items():
        n_in, _ = in_and_out(layers[names[0]])
        sums[names] = found.cpu() if found.numel() else torch.zeros(n_in, n_in)  # no token came here
    if not alone:
        processes.add_up(sums.values())
    return sums


def _same_input(layers: dict[str, nn.Module], read: Callable[[], None]) -> list[tuple[str, ...]]:
    """The layers that one pass gives the same tensor, together; one that it does not reach is alone."""
    given: dict[str, Tensor] = {}
    with _hooked(
        {(name,): layer for name, layer in layers.items()}, lambda key, x: given.setdefault(key[0], x)
    ):
        read()
    groups: dict[int, list[str]] = {}
    for name in layers:  # `given` keeps the tensors, so no two have one id
        groups.setdefault(id(given.get(name, name)), []).append(name)
    return [tuple(names) for names in groups.values()]


@contextmanager
def _hooked(
    layers: dict[tuple[str, ...], nn.Module], see: Callable[[tuple[str, ...], Tensor], Any]
) -> Iterator[None]:
    """A block in which each layer's input is shown, with the layer's key."""

    def hook(key: tuple[str, ...]) -> Any:
        def shown(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
            see(key, inputs[0])

        return shown

    hooks = [layer.register_forward_pre_hook(hook(key)) for key, layer in layers.items()]
    try:
        yield
    finally:
        for one in hooks:
            one.remove()


def _add(sums: Moments, key: tuple[str, ...], x: Tensor) -> None:
    rows = x.detach().reshape(-1, x.shape[-1]).float()  # (tokens, in)
    if not sums[key].numel():
        sums[key] = torch.zeros(rows.shape[1], rows.shape[1], device=rows.device)
    sums[key].addmm_(rows.mT, rows)
