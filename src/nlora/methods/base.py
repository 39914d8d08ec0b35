"""What a method can decide, with the answers that most methods share.

A method chooses what a stage trains on (`examples`), adds to the loss of an optimizer step (`penalty`) or of a
micro-batch (`extra_loss`), may change the factors after each optimizer step (`after_step`), remembers things after a
task (`end_task`), and says how the updates of the stages make up the model (`updates`). Nothing else in the program
asks which method is running, but for one note in `nlora.config.protocol`. docs/methods.md shows how to write one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, get_args, get_origin

from pydantic import model_validator
from typing_extensions import TypeVar

from nlora.config.frozen import Frozen
from nlora.config.penalty_use import IN_LOSS, PenaltyUse
from nlora.errors import Problem

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn
    from torch.optim import Optimizer

    from nlora.config.schema import LoraOptions
    from nlora.data.columns import TokenizedExamples
    from nlora.data.task import Example, Task, TokenizedExample
    from nlora.models.lora_adapter import AdapterState, ModuleShape
    from nlora.models.trainable import Trainable

AUTO, WEIGHT = "auto", "weight"

Portion = tuple["Task", Sequence["Example"]]
"""Examples, with the task whose prompt they are shown in."""
Memory = Mapping[str, "Tensor"]
"""What a method remembers from stage to stage in addition to the updates: tensors by name."""


class MethodOptions(Frozen):
    """Base of all options; by itself, the options of a method that has none.

    An option called `weight` may also be `auto` (`nlora.runs.auto_weight`); until it is chosen, it has its default.
    """

    @model_validator(mode="before")
    @classmethod
    def _auto_is_a_weight(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get(WEIGHT) == AUTO and WEIGHT in cls.model_fields:
            return {key: value for key, value in values.items() if key != WEIGHT}
        return values


OptionsT = TypeVar("OptionsT", bound=MethodOptions, default=MethodOptions, covariant=True)


class Method(Generic[OptionsT]):
    """Base of all methods: trains a fresh adapter per task and adds nothing to the loss.

    options: the method's own, checked. `Method[MyOptions]` sets their type.

    >>> class DecayOptions(MethodOptions):
    ...     weight: float = 0.1
    >>> class Decay(Method[DecayOptions]):
    ...     def penalty(self, adapter):
    ...         return self.options.weight * sum((f.update() ** 2).sum() for f in adapter.factors().values())
    >>> Decay.Options().weight
    0.1
    """

    name: ClassVar[str] = "base"
    """What configurations and tables call the method: the name of its file, or of its entry point."""
    Options: ClassVar[type[MethodOptions]] = MethodOptions
    """The type of the options; taken from `Method[MyOptions]`."""

    trains: ClassVar[Literal["adapter", "weights", "prompts"]] = "adapter"
    """adapter: a fresh low-rank update per task, on a frozen backbone. weights: the backbone's own weights. prompts:
    soft prompts before the text (`nlora.models.soft_prompts`), which stay at the backbone."""
    updates: ClassVar[Literal["added", "continued", "per_task"]] = "added"
    """How the updates of the stages make up the model.

    added: the model is the backbone plus all updates. continued: each stage trains the previous stage's update further,
    so the latest one is the model's. per_task: each task has its own update, so the model must know the task.
    """
    merges: ClassVar[bool] = False
    """Whether the model that answers has an update that is computed from those of the stages: `active_for` returns one
    that no stage trained. `updates` then says how the stages are trained."""
    at_once: ClassVar[bool] = False
    """Whether one stage trains on all tasks together."""
    needs_float_weights: ClassVar[bool] = False
    """Whether the backbone's weights are trained or differentiated, which rules out a quantized backbone."""
    shared_options: ClassVar[tuple[str, ...]] = ()
    """Options that have to be the same at all stages."""
    serves_per_task: bool = False
    """Whether each task is answered by the model as it was after that task. A run with `serve` sets it."""

    penalty_use: PenaltyUse = IN_LOSS
    """How a training applies the penalty; a method may set its own when it is made."""
    rescale: float = 1.0
    """What B is multiplied by once a stage is trained, before the update is scored, saved and merged; a method may set
    its own when it is made."""

    def __init_subclass__(cls) -> None:
        cls.name = cls.__module__.rpartition(".")[2]
        for base in cls.__dict__.get("__orig_bases__", ()):
            if get_origin(base) is Method and isinstance(options := get_args(base)[0], type):
                if not issubclass(options, MethodOptions):
                    raise TypeError(f"the options of {cls.__name__} must be a subclass of MethodOptions")
                cls.Options = options

    chooses_weight: bool = False
    """Whether its option `weight` was given as auto: each stage chooses one (`nlora.runs.auto_weight`)."""

    def __init__(self, options: OptionsT) -> None:
        self.options = options

    # Before any training

    def check(self, modules: Sequence[ModuleShape]) -> list[Problem]:
        """Why this method cannot train these modules; empty if it can."""
        return []

    def check_sequence(self, tasks: int) -> list[Problem]:
        """Why this method cannot learn a sequence of this many tasks; empty if it can. It may store the number."""
        return []

    def check_adopted(self, update: AdapterState, lora: LoraOptions) -> str | None:
        """Why this method cannot learn on top of an adapter that it did not train; None if it can."""
        if self.trains != "adapter":
            trained = {"weights": "the model's own weights", "prompts": "soft prompts"}[self.trains]
            return f"{self.name} trains {trained} and cannot start from an adapter"
        if self.updates == "continued":
            scaling = lora.alpha / lora.r
            if any(f.A.shape[0] != lora.r or f.scaling != scaling for f in update.values()):
                return f"{self.name} continues the adapter, so lora.r and lora.alpha must be the adapter's"
        return None

    def check_extension(self, before: int, after: int) -> list[Problem]:
        """Why a run that has learned some of `before` tasks cannot continue as one of `after`; empty if it can."""
        return []

    def held_bytes(self, modules: Sequence[ModuleShape], earlier: int, device: str) -> int:
        """What it holds on the device ("cpu" or "cuda") while a stage trains, beyond `kept_bytes`.

        earlier: how many stages came before. For the estimate of `nlora check`.
        """
        return 0

    def kept_bytes(self, modules: Sequence[ModuleShape]) -> int:
        """The most that it keeps of earlier stages in the machine's own memory, beyond their updates."""
        return 0

    def examples(self, tasks: Sequence[Task], index: int, seed: int) -> list[Portion]:
        """What the stage of `tasks[index]` trains on; empty: the stage is skipped, neither trained nor scored.

        tasks: the whole sequence, in order. seed: the run's. Draw samples from the seed only, so that a resumed run
        draws the same ones.
        """
        return [(tasks[index], tasks[index].train)]

    # Which updates make up the model

    def active_in_training(self, updates: Sequence[AdapterState]) -> Sequence[AdapterState]:
        """Which of the earlier stages' updates are part of the backbone while the next stage trains."""
        return updates if self.updates == "added" else []

    def active_for(self, updates: Sequence[AdapterState], index: int) -> Sequence[AdapterState]:
        """Which updates are active when the model answers `tasks[index]`: of those learned so far, or made from them.

        A method that makes one sets `merges`, and makes it once for the same updates (`nlora.methods._merge`).
        """
        if self.updates == "per_task":
            return updates[index : index + 1]
        return updates[-1:] if self.updates == "continued" else updates

    @property
    def needs_task(self) -> bool:
        """Whether tasks are answered by different models, so that whoever asks must say which task it is."""
        return self.serves_per_task or self.updates == "per_task"

    def answering(self, updates: Sequence[AdapterState], index: int) -> Sequence[AdapterState]:
        """`active_for`, of the updates that the run answers `tasks[index]` with."""
        return self.active_for(updates[: index + 1] if self.serves_per_task else updates, index)

    # Soft prompts

    def soft_tokens(self, tasks: int) -> int:
        """The most soft tokens that a text begins with, in a sequence of this many tasks."""
        return 0

    def beginning(self, index: int, model: nn.Module, prompts: TokenizedExamples) -> TokenizedExamples:
        """The prompts of `tasks[index]` as the model gets them, with the soft tokens that it has learned before each.

        index: the number of the tasks, for a task that is not in the sequence.
        """
        return prompts

    # A stage

    def attach(self, model: nn.Module, lora: LoraOptions, *, stage: int, seed: int) -> Trainable:
        """Put onto the model what this stage trains. stage: counted from 1."""
        from nlora.models.lora_adapter import LoraAdapter

        return LoraAdapter.attach(model, lora, seed=seed)

    def reload(self, model: nn.Module, folder: Path, *, is_last: bool) -> AdapterState:
        """Read back what a committed stage trained: its update, or weights, which are put into the model.

        folder: the stage's. is_last: whether this is the last committed stage; only its weights are needed.
        """
        if self.trains == "prompts":
            from nlora.models.soft_tokens import load_soft_tokens

            if is_last:
                load_soft_tokens(model, folder)
            return {}
        from nlora.models.lora_adapter import ADAPTER, load_factors

        return load_factors(folder / ADAPTER)

    def see_examples(
        self, model: nn.Module, modules: Sequence[str], examples: Sequence[TokenizedExample], pad_id: int
    ) -> None:
        """Look at what a stage trains on, before its adapter is attached. Called once, also when the stage resumes.

        model: in evaluation mode, as the stage begins: with the earlier updates that are active while it trains.
        modules, examples: as for `end_task`.
        """

    def restore(self, memory: Memory) -> None:
        """Receive what `end_task` returned at the previous stage. Called before `begin_task`, from stage 2 on."""

    def begin_task(self, adapter: Trainable, earlier: Sequence[AdapterState]) -> None:
        """Prepare a stage. Called once, after its adapter is attached and before its first step.

        earlier: the factors that each earlier stage ended with, in order; empty at the first stage. An adapter from
        elsewhere has zeros for the layers that it lacks. A resumed run reads the factors from the stages' folders, so
        whatever a method derives from them survives a restart.
        """
        if self.updates == "continued" and earlier:
            adapter.load_state(earlier[-1])

    def release(self) -> None:
        """Take off what this stage has put on the adapter, such as hooks: someone else may train it on.

        Also forget what was stored for this stage, so that it takes no memory while others are scored or trained. A run
        calls it when the stage is trained, before `end_task`, and again when the stage's model has answered.
        """

    def penalty(self, adapter: Trainable) -> Tensor | None:
        """What is added to the loss of an optimizer step: a scalar with gradients, weight included, or None.

        Must depend only on the adapter and on what `begin_task` stored: no random numbers, no changes to `.grad`.
        Called once per optimizer step, however many micro-batches it has.
        """
        return None

    def extra_loss(self, logits: Tensor, targets: Tensor, before: Callable[[], Tensor]) -> Tensor | None:
        """What is added to a micro-batch's cross-entropy, summed over answer tokens; weight included, or None.

        logits: (B, K, V) of the model in training. targets: (B, K), -100 where there is nothing to predict.
        before: returns the logits (B, K, V) of the model as it was before this stage, without gradients, at the cost of
        a forward pass.
        """
        return None

    def after_step(
        self, adapter: Trainable, *, step: int, steps: int, learning_rate: float, optimizer: Optimizer
    ) -> None:
        """Change the factors in place after an optimizer step, before anything is logged, saved or scored.

        step: optimizer steps of this stage so far, from 1. steps: of the whole stage. learning_rate: of this step.
        optimizer: torch's own, for a method that also has to change what it keeps of a factor.

        Each of several processes calls it, with the same factors, and must come to the same ones: draw no random
        numbers, leave `.grad` alone, and depend only on the arguments, on what `begin_task` stored, and on what earlier
        calls stored, which `state_dict` has to return.
        """

    def may_end(self, step: int, steps: int) -> bool:
        """Whether `train.early_stopping` may keep the adapter of this step of a stage's; asked after each epoch."""
        return True

    def state_dict(self) -> Memory:
        """What it changes while a stage trains; saved with the half-trained adapter. Empty if that is nothing."""
        return {}

    def load_state_dict(self, state: Memory) -> None:
        """Receive what `state_dict` returned, after `begin_task`, when a half-trained stage resumes."""

    def end_task(
        self, model: nn.Module, modules: Sequence[str], examples: Sequence[TokenizedExample], pad_id: int
    ) -> Memory:
        """What to remember of a stage at the next one; saved with the stage.

        model: in evaluation mode, with this stage's update active. modules: the names of the adapted layers.
        examples: those that the stage was trained on, without what `replay` keeps of earlier tasks.
        """
        return {}
