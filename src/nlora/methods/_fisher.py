"""The empirical Fisher information of linear layers: how much a task depends on each of their weights.

It is the mean of squared gradients, one for each example; the square of a batch's summed gradient would be a different
quantity. The gradient of a layer's weight is gᵀ·x, where x is (tokens, in), what the layer read, and g is (tokens,
out), the gradient of what it returned. So several examples may share a pass through the model if their tokens stay
apart, and only this product is made for each of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nlora.data.collate import IGNORED, labels_of
from nlora.data.task import TokenizedExample
from nlora.methods._passes import answers_of, passes, tokens
from nlora.models import processes
from nlora.models.target_modules import in_and_out, linear_layer


class _MixedError(Exception):
    """A layer is given the tokens of several examples in another order or number."""


def fisher_information(
    model: nn.Module, modules: Sequence[str], examples: Sequence[TokenizedExample], pad_id: int
) -> dict[str, Tensor]:
    """Mean over the examples of (∂ log p(answer | prompt) / ∂W)² for every named layer.

    Returns (out, in) each, float32 on the CPU; the sums are made on the device of the model. Several processes share
    the examples, and each gets the mean over all of them. A layer that no token reaches gets zeros. Restores the
    model's mode and `requires_grad`. Source: arXiv 1612.00796.
    """
    sums = {name: _SquareSum(linear_layer(model, name)) for name in modules}
    required = [p for p in model.parameters() if p.requires_grad]
    training = model.training
    model.eval()
    model.requires_grad_(False)
    try:
        for some in passes(model, examples[processes.rank() :: processes.size()]):
            try:
                _add(model, sums, some, pad_id)
            except _MixedError:
                for one in some:
                    _add(model, sums, [one], pad_id)
    finally:
        for parameter in required:
            parameter.requires_grad_(True)
        model.train(training)
    found = {name: sum_.total.cpu() for name, sum_ in sums.items()}
    processes.add_up(found.values())
    return {name: sum_ / len(examples) for name, sum_ in found.items()}


def _add(
    model: nn.Module, sums: Mapping[str, _SquareSum], examples: Sequence[TokenizedExample], pad_id: int
) -> None:
    """Add the squared gradients of examples that share a pass."""
    # Of every layer, and of what the last one computes for the predicting tokens alone
    sizes = [list(map(tokens, examples)), [max(1, _predicting(e)) for e in examples]]
    for sum_ in sums.values():
        sum_.begin(sizes if len(examples) > 1 else ())
    anchor = torch.zeros((), requires_grad=True)
    with _watched(sums, anchor):
        logits, targets = answers_of(model, examples, pad_id, every_token=False)
    loss = F.cross_entropy(
        logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED, reduction="sum"
    )
    torch.autograd.grad(loss, anchor, allow_unused=True)
    for sum_ in sums.values():
        sum_.end()


def _predicting(example: TokenizedExample) -> int:
    return sum(label != IGNORED for label in labels_of(example))


class _SquareSum:
    """The sum of one layer's squared gradients. total: (out, in), float32."""

    def __init__(self, layer: Any) -> None:
        self.layer = layer
        n_in, n_out = in_and_out(layer)
        self.total = torch.zeros(n_out, n_in, device=layer.weight.device)
        self._sizes: Sequence[list[int]] = ()
        self._calls = 0
        self._gradients: dict[int, Tensor] = {}

    def begin(self, sizes: Sequence[list[int]]) -> None:
        """A pass begins. sizes: the possible numbers of rows of each example; empty for a single example."""
        self._sizes, self._calls = sizes, 0

    def called(self, x: Tensor) -> Callable[[Tensor], None]:
        """The layer reads x, (..., in). Returns what takes the gradient of its output."""
        rows = x.detach().flatten(0, -2)
        sizes = [len(rows)]
        if self._sizes:
            fitting = (some for some in self._sizes if x.shape[:-1] == (1, sum(some)))
            if not (sizes := next(fitting, [])):
                raise _MixedError
        self._calls += 1
        return partial(self._add, torch.split(rows, sizes), sizes)

    def _add(self, xs: Sequence[Tensor], sizes: list[int], gradient: Tensor) -> None:
        for i, (x, g) in enumerate(zip(xs, torch.split(gradient.flatten(0, -2), sizes), strict=True)):
            of_weight = torch.mm(g.t(), x)
            if self._calls == 1:
                self._square(of_weight)
            else:  # an example's gradient is the sum over all calls of the layer
                self._gradients[i] = self._gradients[i] + of_weight if i in self._gradients else of_weight

    def _square(self, gradient: Tensor) -> None:
        wide = gradient.float()
        self.total.addcmul_(wide, wide)

    def end(self) -> None:
        """The pass is over."""
        for gradient in self._gradients.values():
            self._square(gradient)
        self._gradients = {}


class _Watched(torch.autograd.Function):
    """Returns a layer's output, and shows its gradient. anchor: requires one, which no frozen model does."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, anchor: Tensor, see: Callable[[Tensor], None]) -> Tensor:
        ctx.see = see
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None]:
        ctx.see(grads[0])
        return grads[0] if ctx.needs_input_grad[0] else None, None, None


@contextmanager
def _watched(sums: Mapping[str, _SquareSum], anchor: Tensor) -> Iterator[None]:
    """A block in which the sums are shown what their layers do."""

    def hook(sum_: _SquareSum) -> Any:
        def shown(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            return cast(Tensor, _Watched.apply(output, anchor, sum_.called(inputs[0])))  # type: ignore[no-untyped-call]

        return shown

    hooks = [sum_.layer.register_forward_hook(hook(sum_)) for sum_ in sums.values()]
    try:
        yield
    finally:
        for one in hooks:
            one.remove()
