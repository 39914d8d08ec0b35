"""What a method is asked, and the few answers that most methods share.

A method decides four things and nothing else: what trains at a stage (`begin`), what is added to the
loss of an optimizer step (`penalty`), what is kept after a task (`end`), and which examples a stage trains on
(`examples`). Nothing else in the program knows which method runs. A new method is one new file in this
folder: a module with a subclass of `Method` called after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from nlora.config import Frozen
from nlora.errors import Problem

if TYPE_CHECKING:
    from torch import Tensor

    from nlora.adapters import Adapter, ModuleShape
    from nlora.data.base import Example, Task


class MethodOptions(Frozen):
    """A method without options of its own."""


class Method:
    """Base of all methods: trains a fresh adapter per task, adds nothing to the loss.

    options: the method's own, checked.
    """

    name: ClassVar[str]
    Options: ClassVar[type[MethodOptions]] = MethodOptions
    accumulates: ClassVar[bool] = True
    """True: the model after stage k is W + Σ_{i<=k} ΔW_i. False: it is W + ΔW_k (one adapter trained on)."""

    def __init__(self, options: MethodOptions) -> None:
        self.options = options

    def check(self, modules: Sequence[ModuleShape]) -> list[Problem]:
        """Why this method cannot train these modules; empty when it can. Called before any training."""
        return []

    def examples(self, task: Task, earlier: Sequence[Task]) -> Sequence[Example]:
        """The examples that the stage of `task` trains on."""
        return task.train

    def penalty(self, adapter: Adapter) -> Tensor | None:
        """What an optimizer step adds to the loss: a scalar with gradients, weight included, or None.

        A pure function of the adapter; called once per optimizer step whatever the accumulation.
        """
        return None
