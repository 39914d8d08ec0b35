"""The model as it trains, and in between as it was."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from torch import nn

from nlora.models.fast_paths import FastPaths
from nlora.models.packed_attention import packed_attention
from nlora.training.fast_modules import fast_modules
from nlora.training.keyed_masks import KeyedMasks


class FastTraining:
    """A block in which the model trains on its fast paths. masks: of dropout; see `fast_modules`."""

    def __init__(
        self, backbone: nn.Module, model: nn.Module, paths: FastPaths, masks: KeyedMasks | None
    ) -> None:
        self._backbone, self._model, self._paths, self._masks = backbone, model, paths, masks
        self._entered = ExitStack()

    def __enter__(self) -> None:
        if self._paths.fast_modules:
            self._entered.enter_context(fast_modules(self._model, masks=self._masks))
        if self._paths.training == "packed":
            self._entered.enter_context(packed_attention(self._backbone))

    def __exit__(self, *error: object) -> None:
        self._entered.close()

    def outside(self, call: Callable[[], float]) -> float:
        """What a function returns that needs the model without them. Within the block."""
        self._entered.close()
        found = call()
        self.__enter__()
        return found
