"""One more task in a training script of your own: transformers' Trainer, TRL, Accelerate or a bare loop.

Earlier adapters are made part of the frozen model, and the method's penalty becomes part of the gradient. Nothing is
patched: the Trainer gets a callback, and a loop calls `NextTask.backward`, or adds `NextTask.penalty` to its loss.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from weakref import WeakSet

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from nlora.api.earlier import Earlier, EarlierTask, earlier_tasks, tokenized
from nlora.api.penalty_callback import PenaltyCallback, refuse_scaled_gradients
from nlora.config.messages import problems_in
from nlora.config.paths import expanded
from nlora.config.penalty_use import IN_LOSS
from nlora.config.places import SourceMap
from nlora.config.schema import Config, LoraOptions
from nlora.errors import AdapterError, InputErrors, ModelError, Problem, RunError
from nlora.methods.base import Memory, Method, MethodOptions
from nlora.methods.registry import build, builtin_names, find
from nlora.models.default_dtype import require_float32
from nlora.models.inspection import is_encoder_decoder
from nlora.models.lora_adapter import LoraAdapter
from nlora.models.lora_factors import with_all_modules
from nlora.models.quantization import keep_trainable
from nlora.models.target_modules import ModuleShape
from nlora.runs.atomic import disk_errors
from nlora.runs.checkpoint import merged_adapters
from nlora.runs.layout import MEMORY_FILE
from nlora.runs.stage_training import stage_seed
from nlora.runs.update_history import UpdateHistory

_IN_USE: WeakSet[nn.Module] = WeakSet()
# What a training loop of someone else's does not do for a method -> what the method would need it for.
_NEEDS: dict[str, str] = {
    "after_step": "changes the adapter after each optimizer step",
    "attach": "trains something other than a LoRA adapter",
    "extra_loss": "adds to the loss of each micro-batch",
    "examples": "decides which examples are trained on",
    "see_examples": "looks at the examples before it trains",
}


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
        self._memory: Memory = {}  # of the earlier tasks
        self._base: nn.Module = self.model.get_base_model()
        self._is_released = False
        _IN_USE.add(self._base)

    def _begin(self, earlier: Sequence[EarlierTask]) -> None:
        """Activate the earlier updates as the method wants it, and let it prepare."""
        factors = self._adapter.factors()
        shapes = [ModuleShape(name, f.shape[1], f.shape[0], f.A.shape[0]) for name, f in factors.items()]
        if problems := self._method.check(shapes):
            raise InputErrors(problems)
        for task in earlier:
            self._history.add(task.update)
        self._history.activate_for_training(self._method)
        self._memory = memory = earlier[-1].memory() if earlier else {}
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

        Raises AdapterError if a factor is not finite, InputErrors for a lack of examples, RunError after `release` and
        for a folder that cannot be written.
        """
        self._refuse_released("save the adapter before release")
        memory: Memory = {}
        if self._keeps_memory:
            if examples is None:
                what = f"{self._method.name} estimates from them what to remember; give task.save(..., examples=...)"
                raise InputErrors([Problem("examples", what)])
            rows = tokenized(examples, encoder_decoder=is_encoder_decoder(self._base))
            if not rows:
                what = "there are none (a generator that was read before is empty); give those that were trained on"
                raise InputErrors([Problem("examples", what)])
            memory = self._method.end_task(self._base, list(self._adapter.factors()), rows, pad_id=0)
            self._method.restore(self._memory)  # which it may have given away; the task may be saved again
        with disk_errors(path := expanded(folder)):
            (path / MEMORY_FILE).unlink(missing_ok=True)  # of an adapter that was here before
            self._adapter.save(path, base_model=str(getattr(self._base.config, "name_or_path", "")))
            self._history.save_memory(path, memory)

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
    if not isinstance(model, PreTrainedModel | PeftModel):
        raise ModelError(
            f"next_task needs a loaded transformers model or a PeftModel, not a {type(model).__name__}"
        )
    require_float32()
    if problems := problems_in({"seed": seed}, Config, SourceMap(""), counts=lambda path: path == ("seed",)):
        raise InputErrors(problems)
    made = _method(method)
    own: Any = model if isinstance(model, PeftModel) else None
    if own is None and not hasattr(model, "prepare_inputs_for_generation"):
        raise ModelError(f"next_task adapts models that write text; {type(model).__name__} has another head")
    options = _lora(lora, own is not None)
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


def _method(method: str | Mapping[str, Any]) -> Method:
    """The method. Raises InputErrors if it is unknown, has no such option, or needs more than an adapter's penalty."""
    if not isinstance(method, str | Mapping):
        raise InputErrors(
            [Problem("method", f"must be a name or a mapping with the method's options, not {method!r}")]
        )
    options = {"name": method} if isinstance(method, str) else dict(method)
    name = options.pop("name", "nlora")
    if not isinstance(name, str):
        raise InputErrors([Problem("method.name", f"must be a text, not {name!r}")])
    if reason := _needs(kind := find(name)):
        able = ", ".join(other for other in builtin_names() if not _needs(find(other)))
        raise InputErrors(
            [
                Problem(
                    "method",
                    f"{kind.name} {reason}, so it works in nlora run only; in other trainers: {able}",
                )
            ]
        )
    made = build(name, options)
    if made.chooses_weight:
        what = "auto tries weights with trainings of its own, so it works in nlora run only; give a number"
        raise InputErrors([Problem("method.weight", what)])
    if made.penalty_use != IN_LOSS:
        what = f"other trainers add {name}'s penalty to the loss of every step; other ways work in nlora run only"
        raise InputErrors([Problem("method", what)])
    if made.rescale != 1:
        what = "other trainers save what they have trained; it works in nlora run only"
        raise InputErrors([Problem("method.rescale", what)])
    return made


def _needs(kind: type[Method[MethodOptions]]) -> str | None:
    """What the method needs apart from a penalty on the adapter; None if nothing."""
    if kind.merges:
        return "answers with a merge of all tasks' updates"
    return next(
        (what for name, what in _NEEDS.items() if getattr(kind, name) is not getattr(Method, name)), None
    )


def _lora(lora: Mapping[str, Any] | LoraOptions | None, peft: bool) -> LoraOptions:
    if isinstance(lora, LoraOptions):
        lora = lora.model_dump(exclude_unset=True)
    if peft and lora:
        raise InputErrors(
            [Problem("lora", "the PeftModel has an adapter already, which is used as it is; leave lora out")]
        )
    values = dict(lora) if isinstance(lora, Mapping) else {} if lora is None else lora
    if problems := problems_in(values, LoraOptions, SourceMap(""), ("lora",)):
        raise InputErrors(problems)
    return LoraOptions.model_validate(values)
