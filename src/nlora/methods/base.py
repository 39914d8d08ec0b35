"""What a method is asked, and the few answers that most methods share.

A method decides what a stage trains on (`examples`) and where it starts (`begin_task`), what is added to the loss of an
optimizer step (`penalty`) or of a micro-batch (`extra_loss`), what is kept after a task (`end_task`), and which updates
make up the model (`active_in_training`, `active_for`). Nothing else in the program knows which method runs. A new
method is one new file in this folder: a module with one subclass of `Method`, known by the file's name.

    class Mine(Method):
        Options = MyOptions                      # typed; their descriptions are their documentation
        options: MyOptions

        def penalty(self, adapter: Trainable) -> Tensor | None:
            ...
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from nlora.config.schema import Frozen
from nlora.errors import Problem

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

    from nlora.config.schema import LoraOptions
    from nlora.data.task import Example, Task, TokenizedExample
    from nlora.models.lora_adapter import AdapterState, ModuleShape
    from nlora.models.trainable import Trainable

Portion = tuple["Task", Sequence["Example"]]
"""Examples with the task whose prompt they are asked with."""
Memory = Mapping[str, "Tensor"]
"""What a method keeps from stage to stage, beside the updates: tensors by name."""


class MethodOptions(Frozen):
    """A method without options of its own."""


class Method:
    """Base of all methods: trains a fresh adapter per task, adds nothing to the loss.

    options: the method's own, checked.
    """

    name: ClassVar[str] = "base"
    """The name of the method's file: what a configuration calls it."""
    Options: ClassVar[type[MethodOptions]] = MethodOptions
    trains: ClassVar[Literal["adapter", "weights"]] = "adapter"
    """adapter: a fresh low-rank update per task, the backbone frozen. weights: the backbone's own."""

    weights: ClassVar[Literal["any", "float"]] = "any"
    """float: the method differentiates the backbone's own weights, which must not be quantized then."""

    continues_adapter: ClassVar[bool] = False
    """Whether each stage trains the previous stage's update further, so that the last one answers for all tasks."""
    needs_task_id: ClassVar[bool] = False
    """Whether each task has a model of its own, so that an answer needs to know its task."""

    @property
    def needs_float_weights(self) -> bool:
        """Whether the backbone's own weights are trained or differentiated, which quantized ones do not allow."""
        return self.trains == "weights" or self.weights == "float"

    def __init_subclass__(cls) -> None:
        cls.name = cls.__module__.rpartition(".")[2]

    def __init__(self, options: MethodOptions) -> None:
        self.options = options

    # Before any training

    def check(self, modules: Sequence[ModuleShape]) -> list[Problem]:
        """Why this method cannot train these modules; empty when it can."""
        return []

    def check_sequence(self, tasks: int) -> list[Problem]:
        """Why this method cannot learn a sequence of so many tasks; empty when it can. It may keep the number."""
        return []

    def examples(self, tasks: Sequence[Task], index: int, seed: int) -> list[Portion]:
        """What the stage of `tasks[index]` trains on; nothing: the stage is passed over, untrained and unscored.

        tasks: the whole sequence, in order. seed: the run's; a sample drawn by it is the same after a restart.
        """
        return [(tasks[index], tasks[index].train)]

    # Which updates make up the model

    def active_in_training(self, updates: Sequence[AdapterState]) -> Sequence[AdapterState]:
        """Those of the earlier stages' updates that are in the backbone while the next stage trains."""
        return updates

    def active_for(self, updates: Sequence[AdapterState], index: int) -> Sequence[AdapterState]:
        """Those of the updates learned so far that answer `tasks[index]`: all, so that no task id is needed."""
        return updates

    # A stage

    def attach(self, model: nn.Module, lora: LoraOptions, *, stage: int, seed: int) -> Trainable:
        """What the stage trains, put on the model. stage: from 1."""
        from nlora.models.lora_adapter import LoraAdapter

        return LoraAdapter.attach(model, lora, seed=seed)

    def reload(self, model: nn.Module, folder: Path, *, is_last: bool) -> AdapterState:
        """What a committed stage trained, from its folder: its update, or weights put back into the model.

        is_last: whether no later stage is committed; weights are put back for that one only.
        """
        from nlora.models.lora_adapter import ADAPTER, load_factors

        return load_factors(folder / ADAPTER)

    def restore(self, memory: Memory) -> None:
        """Take what `end_task` kept at the stage before; called before `begin_task`, but not at the first stage."""

    def begin_task(self, adapter: Trainable, earlier: Sequence[AdapterState]) -> None:
        """Prepare a stage: called once, with its fresh adapter attached, before its first step.

        earlier: the factors that the stages before ended with, in order; empty at the first one. A resumed
        run reads them back from the stages' folders, so what a method derives from them survives a restart.
        """

    def penalty(self, adapter: Trainable) -> Tensor | None:
        """What an optimizer step adds to the loss: a scalar with gradients, weight included, or None.

        A pure function of the adapter (and of what `begin_task` kept): no random numbers, no change to `.grad`.
        Called once per optimizer step, whatever the gradient accumulation.
        """
        return None

    def extra_loss(self, logits: Tensor, targets: Tensor, before: Callable[[], Tensor]) -> Tensor | None:
        """What a micro-batch adds to the summed cross-entropy of its answer tokens, weight included, or None.

        logits: (B, K, V) of the model that trains. targets: (B, K), -100 where there is nothing to predict.
        before: the logits (B, K, V) of the model as it was before this stage, without gradients; asking costs a
        forward pass.
        """
        return None

    def end_task(
        self, model: nn.Module, modules: Sequence[str], examples: Sequence[TokenizedExample], pad_id: int
    ) -> Memory:
        """What to keep of a stage for the next one; saved with the stage.

        model: in evaluation mode, with this stage's update in the weights of `modules`. examples: those that the
        stage trained on.
        """
        return {}
