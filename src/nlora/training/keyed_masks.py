"""Dropout masks of an update that are the same however a step is split into micro-batches and processes.

A mask depends on the seed, the optimizer step, the layer, the example and the position of a token in its example. In
a packed batch (`nlora.data.packing`), the examples share the tokens that all examples of the training begin with, or
those of a task, and so their masks; these depend on no example. A layer that runs twice in a step, once more for
gradient checkpointing or in a model that shares its weights between layers, draws the same masks again.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import accumulate

import torch
from peft.tuners.lora import LoraLayer
from torch import nn

from nlora.data.packing import Beginnings, common_tokens
from nlora.data.task import TokenizedExample
from nlora.kernels.streams import Streams
from nlora.models.fast_paths import FastPaths
from nlora.models.inspection import Batch
from nlora.training.finite_guard import ROWS

_ALL = 0
"""The stream of what all examples begin with. That of an example is its number in the training set, from 1; those of
the beginnings of tasks are negative."""
Spans = list[tuple[int, int, int]]


class KeyedMasks:
    """The streams of a training's masks.

    seed: of the training. beginning: how many tokens all of its examples begin with, and share in a packed batch of
    several. beginnings: the lengths of those of its tasks. encoder_decoder: whether padded batches are padded on the
    right.
    """

    def __init__(
        self, seed: int, *, beginning: int, beginnings: Sequence[int] = (), encoder_decoder: bool
    ) -> None:
        self.beginning = beginning
        self._beginnings = beginnings
        self._seed, self._encoder_decoder = seed, encoder_decoder
        self._step = 0
        self._names: list[int] = []  # of the streams of the micro-batch's examples
        self._packed: dict[int, Spans] | None = None  # by the number of rows

    def begin(self, step: int, batch: Batch) -> None:
        """Draw for this micro-batch of an optimizer step from now on. batch: with the indices of its examples."""
        self._step = step
        self._names = [row + 1 for row in batch[ROWS].tolist()]
        self._packed = None
        if "groups" in batch and self._names:
            self._packed = _packed_spans(batch, self._names, self.beginning, self._beginnings)

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
    beginnings: Beginnings,
    seed: int,
    encoder_decoder: bool,
) -> KeyedMasks | None:
    """The masks of a training; None without dropout on the updates, and where `fast_modules` does not replace it.

    beginnings: those of its tasks, for packed batches.
    """
    on_cpu = next(model.parameters()).device.type == "cpu"
    if not (paths.fast_modules and on_cpu and update_dropouts(model)):
        return None
    beginning = common_tokens(examples) if paths.training == "packed" else 0
    lengths = [len(ids) for ids in beginnings]
    return KeyedMasks(seed, beginning=beginning, beginnings=lengths, encoder_decoder=encoder_decoder)


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


def _packed_spans(
    batch: Batch, names: list[int], beginning: int, beginnings: Sequence[int]
) -> dict[int, Spans]:
    """Of all tokens, and of those that predict an answer, which are all that some layers get."""
    numbers = batch["beginnings"].tolist()

    def streams(i: int) -> Spans:
        """Of an example's tokens, wherever they are."""
        own = beginning if numbers[i] < 0 else beginnings[numbers[i]]
        return [(0, beginning, _ALL), (beginning, own, -1 - numbers[i]), (own, sys.maxsize, names[i])]

    of_all: Spans = []
    order: list[int] = []
    lasts: list[int] = []
    at = 0
    for group in batch["groups"]:
        prefix, start = group["keys_at"].shape[1] - group["rows_at"].shape[1], at
        members = group["examples"].tolist()
        of_all += _placed(streams(members[0]), 0, prefix, at)
        at += prefix
        for i, last in zip(members, group["rows_at"][:, -1].tolist(), strict=True):
            tokens = start + last + 1 - at
            of_all += _placed(streams(i), prefix, prefix + tokens, at)
            at += tokens
            order.append(i)
            lasts.append(at - 1)
    predicting = batch["predict_at"]
    examples = torch.tensor(order)[torch.searchsorted(torch.tensor(lasts), predicting)]
    counts = torch.bincount(examples, minlength=len(names)).tolist()
    ends = list(accumulate(counts))
    of_some = [(end - count, end, name) for count, end, name in zip(counts, ends, names, strict=True)]
    return {len(predicting): of_some, at: of_all}


def _placed(streams: Spans, first: int, end: int, at: int) -> Spans:
    """The spans of an example's tokens from `first` to `end`, which are the batch's from `at` on."""
    cut = ((max(begin, first), min(stop, end), name) for begin, stop, name in streams)
    return [(at + begin - first, at + stop - first, name) for begin, stop, name in cut if begin < stop]
