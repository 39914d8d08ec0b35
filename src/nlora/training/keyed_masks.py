"""Dropout masks of an update that are the same however a step is split into micro-batches and processes.

A mask depends on the seed, the optimizer step, the layer, the example and the position of a token in its example. In
a packed batch (`nlora.data.packing`), the examples share the tokens that all examples of the training begin with, and
so their masks; these depend on no example. A layer that runs twice in a step, once more for gradient checkpointing
or in a model that shares its weights between layers, draws the same masks again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from nlora.data.packing import common_tokens
from nlora.data.task import TokenizedExample
from nlora.kernels.streams import Streams
from nlora.models.fast_paths import FastPaths
from nlora.training.finite_guard import ROWS

_ALL = 0
"""The stream of the shared beginning; that of an example is its number in the training set, from 1."""
Spans = list[tuple[int, int, int]]


class KeyedMasks:
    """The streams of a training's masks.

    seed: of the training. beginning: how many tokens all of its examples begin with, and share in a packed batch of
    several. encoder_decoder: whether padded batches are padded on the right.
    """

    def __init__(self, seed: int, *, beginning: int, encoder_decoder: bool) -> None:
        self.beginning = beginning
        self._seed, self._encoder_decoder = seed, encoder_decoder
        self._step = 0
        self._names: list[int] = []  # of the streams of the micro-batch's examples
        self._packed: dict[int, Spans] | None = None  # by the number of rows

    def begin(self, step: int, batch: Mapping[str, Tensor]) -> None:
        """Draw for this micro-batch of an optimizer step from now on. batch: with the indices of its examples."""
        self._step = step
        self._names = [row + 1 for row in batch[ROWS].tolist()]
        self._packed = None
        if "rows_at" in batch and self._names:
            self._packed = _packed_spans(batch, self._names, self.beginning)

    def streams(self, layer: int, rows: int) -> Streams | None:
        """Of a layer's input; None if its rows are not those of the micro-batch."""
        packed = self._packed is not None
        spans = self._packed.get(rows) if self._packed is not None else _padded_spans(rows, self._names)
        if spans is None:
            return None
        # Examples end together if they are padded on the left.
        backwards = not packed and not self._encoder_decoder
        return Streams((self._seed, self._step), layer, spans, backwards)


def masks_of(
    model: nn.Module,
    paths: FastPaths,
    examples: Sequence[TokenizedExample],
    seed: int,
    encoder_decoder: bool,
) -> KeyedMasks | None:
    """The masks of a training; None without dropout on the updates, and where `cpu_modules` does not replace it."""
    on_cpu = next(model.parameters()).device.type == "cpu"
    if not (paths.cpu_modules and on_cpu and update_dropouts(model)):
        return None
    beginning = common_tokens(examples) if paths.training == "packed" else 0
    return KeyedMasks(seed, beginning=beginning, encoder_decoder=encoder_decoder)


def update_dropouts(model: nn.Module) -> dict[nn.Module, int]:
    """The dropouts of the LoRA layers, each with the number of its layer."""
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    return {
        dropout: number
        for number, layer in enumerate(layers)
        for dropout in layer.lora_dropout.values()
        if getattr(dropout, "p", 0) > 0
    }


def _padded_spans(rows: int, names: list[int]) -> Spans | None:
    """Of B examples with the same number of rows each."""
    if not names or rows % len(names):
        return None
    width = rows // len(names)
    return [(row * width, (row + 1) * width, name) for row, name in enumerate(names)]


def _packed_spans(batch: Mapping[str, Tensor], names: list[int], beginning: int) -> dict[int, Spans]:
    """Of all tokens, and of those that predict an answer, which are all that some layers get."""
    tokens = batch["input_ids"].shape[1]
    shared = tokens - len(batch["back_at"])
    last = batch["rows_at"][:, -1].contiguous()
    of_all: Spans = [(0, shared, _ALL)] if shared else []
    begin = shared
    for end, name in zip((last + 1).tolist(), names, strict=True):
        # An example alone in its batch has the shared tokens among its own.
        own = begin + max(beginning - shared, 0)
        of_all += [span for span in ((begin, own, _ALL), (own, end, name)) if span[0] < span[1]]
        begin = end
    predicting = batch["predict_at"]
    counts = torch.bincount(torch.searchsorted(last, predicting), minlength=len(names)).tolist()
    of_some: Spans = []
    begin = 0
    for count, name in zip(counts, names, strict=True):
        of_some.append((begin, begin + count, name))
        begin += count
    return {len(predicting): of_some, tokens: of_all}
