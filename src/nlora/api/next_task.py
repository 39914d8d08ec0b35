"""One more task in a training script of your own: transformers' Trainer, TRL, Accelerate or a bare loop.

Earlier adapters are made part of the frozen model, and the method's penalty becomes part of the gradient. Nothing is
patched: the Trainer gets a callback, and a loop calls `NextTask.backward`, or adds `NextTask.penalty` to its loss.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakSet

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from nlora.api.arguments import folder_of
from nlora.api.earlier import Earlier, EarlierTask, earlier_tasks, of_run, tokenized
from nlora.api.next_task_options import lora_of, method_of
from nlora.api.penalty_callback import PenaltyCallback, refuse_scaled_gradients
from nlora.config.messages import problems_in
from nlora.config.places import SourceMap
from nlora.config.schema import Config, LoraOptions
from nlora.errors import AdapterError, InputErrors, ModelError, Problem, RunError
from nlora.methods.base import Memory, Method
from nlora.models.host_modes import own_modes, require_float32
from nlora.models.inspection import is_encoder_decoder
from nlora.models.lora_adapter import LoraAdapter
from nlora.models.lora_factors import AdapterState, with_all_modules
from nlora.models.quantization import keep_trainable
from nlora.models.target_modules import ModuleShape
from nlora.runs.atomic import disk_errors
from nlora.runs.checkpoint import merged_adapters
from nlora.runs.layout import MEMORY_FILE
from nlora.runs.stage_training import stage_seed
from nlora.runs.update_history import UpdateHistory

_IN_USE: WeakSet[nn.Module] = WeakSet()


class NextTask:
    """A task in training, made by `nlora.next_task`.

    model: the PeftModel to train; only its LoRA adapter is trainable. callback: for a Trainer's `callbacks`.
    seed: this task's own, for the order of the examples; the one that `nlora run` would use.

    >>> model, tokenizer = nlora.open_run("runs/support").model(stage=0)
    >>> with nlora.next_task(model, after="runs/support", method="olora") as task:
    ...     task.model.print_trainable_parameters(), task.penalty().item() > 0
    trainable params: ...
    (None, True)
    """

    def __init__(
        self, given: Any, adapter: LoraAdapter, history: UpdateHistory, method: Method, seed: int
    ) -> None:
        self.model: Any = adapter.model
        self.callback = PenaltyCallback(self.backward)
        self.seed = seed
        self._given, self._adapter, self._history, self._method = given, adapter, history, method
        self._earlier: Sequence[EarlierTask] = ()
        self._memory: Memory = {}  # of the earlier tasks
        self._base: nn.Module = self.model.get_base_model()
        self._is_released = False
        _IN_USE.add(self._base)

    def _begin(self, earlier: Sequence[EarlierTask]) -> None:
        """Activate the earlier updates as the method wants it, and let it prepare."""
        factors, self._earlier = self._adapter.factors(), earlier
        shapes = [ModuleShape(name, f.shape[1], f.shape[0], f.A.shape[0]) for name, f in factors.items()]
        if problems := self._method.check(shapes):
            raise InputErrors(problems)
        for task in earlier:
            self._history.add(task.update)
        self._refuse_own_update()
        self._history.activate_for_training(self._method)
        memory, covered = earlier[-1].memory() if earlier else ({}, None)
        if self._keeps_memory and memory and covered not in (None, self._tasks):
            raise AdapterError(
                f"{earlier[-1].name}: what {self._method.name} remembers there is of {covered} of the {self._tasks} "
                "tasks in `after`; give them in the order in which they were learned, each learned with those before it"
            )
        self._memory = memory
        self._method.restore(memory)
        updates = [task.update for task in earlier]
        if self._method.updates != "continued":  # that needs all of its modules as they are
            updates = [with_all_modules(update, factors) for update in updates]
        try:
            self._method.begin_task(self._adapter, updates)
        except RunError as error:
            if memory or not earlier:
                raise
            raise AdapterError(
                f"{earlier[-1].name}: holds nothing that {self._method.name} remembers; save every task that it learns "
                "with task.save(folder, examples=...)"
            ) from error

    @property
    def _tasks(self) -> int:
        return sum(task.tasks for task in self._earlier)

    def _refuse_own_update(self) -> None:
        """Raise InputErrors if the adapter in training is an earlier update, which would be active once more."""
        if self._given is not self.model:  # a fresh adapter
            return
        own = self._adapter.state()
        active = self._method.active_in_training(self._history.updates)
        for task in self._earlier:
            if any(task.update is update for update in active) and _same(own, task.update):
                what = f"{task.name} is what the PeftModel holds, and would count twice; give its base model without it"
                raise InputErrors([Problem("after", what)])

    def _refuse_lost(self, folder: Path) -> None:
        """Raise InputErrors if an earlier adapter lies in a folder that is to be written."""
        if self._method.updates == "added" and folder.resolve() in [task.folder for task in self._earlier]:
            raise InputErrors(
                [Problem("folder", f"{folder} holds an earlier task's adapter; choose another one")]
            )
        if of_run(folder.resolve()):
            what = (
                f"{folder} is the adapter of a run's stage, which the run needs as it is; choose another one"
            )
            raise InputErrors([Problem("folder", what)])

    def _refuse_released(self, what: str) -> None:
        if self._is_released:
            raise RunError(f"{what}, which removes it")

    @property
    def _keeps_memory(self) -> bool:
        return type(self._method).end_task is not Method.end_task

    def penalty(self) -> Tensor:
        """The method's penalty, weight included: a scalar to add to the loss once per optimizer step.

        Zero if the method has none. The gradient goes to the adapter's factors only. Raises RunError after `release`.
        """
        self._refuse_released("add no penalty after release")
        penalty = self._method.penalty(self._adapter)
        return torch.zeros((), device=next(self.model.parameters()).device) if penalty is None else penalty

    def backward(self) -> None:
        """Add the penalty's gradient to the adapter's `.grad`: once per optimizer step, before clipping.

        The same as adding `penalty` to the loss, but independent of how the loss is scaled or accumulated. A loop with
        a GradScaler has to add `penalty` to its loss instead.

        Raises ModelError if `accelerate launch` has the gradients scaled or split, RunError after `release`.
        """
        self._refuse_released("add no penalty after release")
        refuse_scaled_gradients()
        penalty = self._method.penalty(self._adapter)
        if penalty is not None:
            penalty.backward()  # type: ignore[no-untyped-call]

    def save(
        self, folder: str | os.PathLike[str], *, examples: Iterable[Mapping[str, Any]] | None = None
    ) -> None:
        """Write the new adapter, without the earlier ones, as an ordinary PEFT LoRA folder.

        examples: those that were trained on, each with input_ids and labels (-100 for the prompt). Only for a method
            that remembers something of a task (ewc), which is written to the same folder.

        Raises AdapterError if a factor is not finite, InputErrors for a lack of examples and for a folder of an earlier
        adapter, RunError after `release` and for a folder that cannot be written.
        """
        self._refuse_released("save the adapter before release")
        path = folder_of(folder, "folder")
        self._refuse_lost(path)
        memory: Memory = {}
        if self._keeps_memory:
            if examples is None:
                what = f"{self._method.name} estimates from them what to remember; give task.save(..., examples=...)"
                raise InputErrors([Problem("examples", what)])
            rows = tokenized(examples, encoder_decoder=is_encoder_decoder(self._base))
            if not rows:
                what = "there are none (a generator that was read before is empty); give those that were trained on"
                raise InputErrors([Problem("examples", what)])
            with own_modes():
                memory = self._method.end_task(self._base, list(self._adapter.factors()), rows, pad_id=0)
            self._method.restore(self._memory)  # which it may have given away; the task may be saved again
        with disk_errors(path):
            (path / MEMORY_FILE).unlink(missing_ok=True)  # of an adapter that was here before
            self._adapter.save(path, base_model=str(getattr(self._base.config, "name_or_path", "")))
            self._history.save_memory(path, memory, self._tasks + 1)

    def release(self) -> Any:
        """Return the given model without the earlier updates: a plain model as it was, a PeftModel with its adapter."""
        if not self._is_released:
            self._is_released = True
            _IN_USE.discard(self._base)
            self._method.release()
            if self._given is not self.model:
                self._adapter.detach()
            self._history.deactivate()
        return self._given

    def __enter__(self) -> NextTask:
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()


def next_task(
    model: Any,
    *,
    after: Earlier | Sequence[Earlier] = (),
    method: str | Mapping[str, Any] = "nlora",
    lora: Mapping[str, Any] | LoraOptions | None = None,
    seed: int = 42,
) -> NextTask:
    """Prepare a model to learn one more task in a training loop of your own.

    model: a transformers model, which gets a fresh LoRA adapter, or a PeftModel with one LoRA adapter, which is used as
        it is. It is changed in place until `NextTask.release`.
    after: what was learned before, in order: PEFT LoRA folders, hub ids, runs (each of their stages), or factors in
        memory. They are frozen, and active as the method wants it.
    method, lora: as in a configuration: a name, or a mapping with the method's options; the keys of `lora`.
    seed: determines the fresh adapter, as in a run.

    Raises InputErrors for options that do not exist, a method that needs more than this, or an update that would count
    twice, AdapterError for an adapter that does not fit the model, ModelError for a model that cannot be adapted or is
    learning another task.

    >>> model, tokenizer = nlora.open_run("runs/support").model(stage=0)  # or any model of transformers
    >>> task = nlora.next_task(model, after=["runs/support"], method={"name": "nlora", "weight": 1e-3})
    >>> optimizer = torch.optim.AdamW([p for p in task.model.parameters() if p.requires_grad])
    >>> ids = torch.tensor([[5, 9, 17]])
    >>> loss = task.model(input_ids=ids, labels=ids).loss + task.penalty()
    >>> loss.backward()
    >>> optimizer.step()
    >>> task.save("adapters/mail")
    >>> task.release() is model
    True
    """
    with own_modes():
        return _next_task(model, after, method, lora, seed)


def _next_task(
    model: Any,
    after: Earlier | Sequence[Earlier],
    method: str | Mapping[str, Any],
    lora: Mapping[str, Any] | LoraOptions | None,
    seed: int,
) -> NextTask:
    if not isinstance(model, PreTrainedModel | PeftModel):
        raise ModelError(
            f"next_task needs a loaded transformers model or a PeftModel, not a {type(model).__name__}"
        )
    require_float32()
    if problems := problems_in({"seed": seed}, Config, SourceMap(""), counts=lambda path: path == ("seed",)):
        raise InputErrors(problems)
    made = method_of(method)
    own: Any = model if isinstance(model, PeftModel) else None
    if own is None and not hasattr(model, "prepare_inputs_for_generation"):
        raise ModelError(f"next_task adapts models that write text; {type(model).__name__} has another head")
    options = lora_of(lora, own is not None)
    base = model if own is None else own.get_base_model()
    if base in _IN_USE:
        raise ModelError("the model is learning another task already; call release() of that NextTask first")
    if offloaded := next((name for name, p in base.named_parameters() if p.is_meta), None):
        raise ModelError(f"{offloaded} is offloaded (device_map); load the model where it is trained")
    keep_trainable(base)
    earlier = earlier_tasks(after, base)
    if twice := next((task.name for task in earlier if task.folder in merged_adapters(base)), None):
        what = f"{twice}: Run.model() has merged its update already; take run.model(stage=0), which has none"
        raise InputErrors([Problem("after", what)])
    own_seed = stage_seed(seed, sum(task.tasks for task in earlier) + 1)
    adapter = LoraAdapter.attach(model, options, seed=own_seed) if own is None else LoraAdapter.of(own)
    modules = dict.fromkeys([*adapter.factors(), *(name for task in earlier for name in task.update)])
    task = NextTask(model, adapter, UpdateHistory(base, list(modules)), made, own_seed)
    try:
        task._begin(earlier)
    except BaseException:
        task.release()
        raise
    return task


def _same(one: AdapterState, other: AdapterState) -> bool:
    """Whether two adapters have the same factors."""
    return one.keys() == other.keys() and all(
        torch.equal(f.A, other[name].A.to(f.A)) and torch.equal(f.B, other[name].B.to(f.B))
        for name, f in one.items()
    )
