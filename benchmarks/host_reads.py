"""Counts where Python reads a tensor's numbers, which on a GPU waits until all work before is done.

On CUDA, torch itself says when an operation waits (`torch.cuda.set_sync_debug_mode`). On a CPU nothing waits, so the
methods of a tensor that read its numbers are counted instead, whichever tensor it is.
"""

from __future__ import annotations

import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

METHODS = ("item", "tolist", "__bool__", "__int__", "__float__", "__index__", "cpu", "numpy", "nonzero")
KINDS = {
    "torch/utils/data/": "loading",
    "accelerate/data_loader.py": "loading",
    "transformers/masking_utils.py": "masks",
    "nlora/training/keyed_masks.py": "processor",
}
"""Files whose reads are counted apart: of the data loader, and of transformers, which looks whether a mask hides
anything. A packed batch has no mask. Masks of dropout are keyed by example on a processor only, where nothing waits."""
LOGGING = "_maybe_log_save_evaluate"
"""The Trainer's method for everything that it does between steps."""


class HostReads:
    """A block in which reads are counted.

    steps: how many reads each optimizer step has had, without those of logging and of KINDS.
    places: all of them, by kind and place. `mark` ends a step.
    """

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.places: Counter[tuple[str, str]] = Counter()
        self._now = 0
        self._undo = ExitStack()
        self._within = False

    def __enter__(self) -> HostReads:
        if torch.cuda.is_available():
            before = torch.cuda.get_sync_debug_mode()
            self._undo.callback(torch.cuda.set_sync_debug_mode, before)
            torch.cuda.set_sync_debug_mode("warn")
            self._undo.enter_context(warnings.catch_warnings())
            warnings.simplefilter("always")
            self._undo.enter_context(patch.object(warnings, "showwarning", self._warned))
        else:
            for name in METHODS:
                self._undo.enter_context(patch.object(Tensor, name, self._counted(getattr(Tensor, name))))
        return self

    def __exit__(self, *error: object) -> None:
        self._undo.close()

    def mark(self, step: int = 0) -> None:
        """The step ends here. step: its number, as `train` gives it."""
        self.steps.append(self._now)
        self._now = 0

    def _warned(self, message: Any, *args: Any, **kwargs: Any) -> None:
        if "synchronizing CUDA operation" in str(message):
            self._add()

    def _counted(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def counted(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            if self._within:  # one read may be made of others
                return method(tensor, *args, **kwargs)
            self._within = True
            try:
                self._add()
                return method(tensor, *args, **kwargs)
            finally:
                self._within = False

        return counted

    def _add(self) -> None:
        stack = [frame for frame in traceback.extract_stack() if frame.filename != __file__]
        kind = next((k for part, k in KINDS.items() if any(part in f.filename for f in stack)), "step")
        if any(frame.name == LOGGING for frame in stack):
            kind = "logging"
        self.places[kind, _place(stack)] += 1
        self._now += kind == "step"


def _place(stack: list[traceback.FrameSummary]) -> str:
    """The innermost line outside of torch."""
    outside = [frame for frame in stack if "/torch/" not in frame.filename] or stack
    folder, _, name = outside[-1].filename.rpartition("/")
    return f"{folder.rpartition('/')[2]}/{name}:{outside[-1].lineno}"
