"""What a method is asked, and the few answers that most methods share.

A method decides four things and nothing else: where a stage starts (`begin`), what is added to the loss of
an optimizer step (`penalty`), which examples a stage trains on (`examples`), and whether the updates add up
(`accumulates`). Nothing else in the program knows which method runs. A new method is one new file in this
folder: a module with one subclass of `Method`, known by the file's name.

    class Mine(Method):
        Options = MyOptions                      # typed; their descriptions are their documentation
        options: MyOptions

        def penalty(self, adapter: Adapter) -> Tensor | None:
            ...
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from nlora.config import Frozen
from nlora.errors import Problem

if TYPE_CHECKING:
    from torch import Tensor

    from nlora.adapters import Adapter, ModuleShape, State
    from nlora.data.base import Example, Task


class MethodOptions(Frozen):
    """A method without options of its own."""


class Method:
    """Base of all methods: trains a fresh adapter per task, adds nothing to the loss.

    options: the method's own, checked.
    """

    name: ClassVar[str] = "base"
    """The name of the method's file: what a configuration calls it."""
    Options: ClassVar[type[MethodOptions]] = MethodOptions
    accumulates: ClassVar[bool] = True
    """True: the model after stage k is W + Σ_{i<=k} ΔW_i. False: it is W + ΔW_k (one adapter trained on)."""

    def __init_subclass__(cls) -> None:
        cls.name = cls.__module__.rpartition(".")[2]

    def __init__(self, options: MethodOptions) -> None:
        self.options = options

    def check(self, modules: Sequence[ModuleShape]) -> list[Problem]:
        """Why this method cannot train these modules; empty when it can. Called before any training."""
        return []

    def examples(self, task: Task, earlier: Sequence[Task]) -> Sequence[Example]:
        """The examples that the stage of `task` trains on; `earlier`: the tasks learned before, in order."""
        return task.train

    def begin(self, adapter: Adapter, earlier: Sequence[State]) -> None:
        """Prepare a stage: called once, with its fresh adapter attached, before its first step.

        earlier: the factors that the stages before ended with, in order; empty at the first one. A resumed
        run reads them back from the stages' folders, so what a method derives from them survives a restart.
        """

    def penalty(self, adapter: Adapter) -> Tensor | None:
        """What an optimizer step adds to the loss: a scalar with gradients, weight included, or None.

        A pure function of the adapter (and of what `begin` kept): no random numbers, no change to `.grad`.
        Called once per optimizer step, whatever the gradient accumulation.
        """
        return None
