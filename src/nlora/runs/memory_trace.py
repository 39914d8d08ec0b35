"""A run's longest batches, taken through a skeleton with fake tensors: what they need at their peaks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from nlora.data.collate import IGNORED, Collator
from nlora.data.packing import Beginnings, beginnings_of, pack
from nlora.data.task import TokenizedExample
from nlora.evaluation.choices import decode_of
from nlora.evaluation.prefill import Prefiller
from nlora.methods.base import Method
from nlora.models.fast_paths import FastPaths
from nlora.models.inspection import Batch
from nlora.models.logits import answer_logits
from nlora.models.masked_attention import pretending
from nlora.models.packed_attention import packed_attention
from nlora.models.soft_prompts import PromptPool
from nlora.models.traced_memory import (
    LiveBytes,
    fake_batch,
    give_fake_tensors,
    held_bytes,
    held_tensors,
    layer_lists,
)
from nlora.training.fast_modules import fast_modules

if TYPE_CHECKING:
    from nlora.config.schema import Config
    from nlora.runs.plan import Plan

Device = Literal["cpu", "cuda"]
_ADAM = 2
"""AdamW keeps two averages of each trained parameter."""
_FEW_LAYERS = 3
"""From here on, each further layer adds the same. With two, the peak of scoring is at another place."""
_PASS_TOKENS = 1024
"""Tokens that scoring reads at a time on a CPU; what they leave behind is extrapolated to all prompts of a batch."""


class TracedRun:
    """One skeleton with fake tensors, whose peaks are extrapolated from a few layers."""

    def __init__(
        self,
        plan: Plan,
        config: Config,
        model: Any,
        mode: FakeTensorMode,
        paths: FastPaths,
        device: Device,
        processes: int,
    ) -> None:
        self._plan, self._config, self._model, self._mode = plan, config, model, mode
        self._paths, self._device, self._processes = paths, device, processes
        self._shares_prompts = True  # whether all texts begin with the same soft tokens, if with any

    def parts(self) -> dict[str, int]:
        """adapter, optimizer, training and scoring."""
        trained = self._trained_bytes()
        batch, checkpoints = self._longest_batch()
        training = self._over_layers(lambda: self._step_peak(batch, checkpoints))
        prompts, share = self._longest_prompts()
        peak = self._over_layers(lambda: self._reading(prompts)[0])
        left = self._over_layers(lambda: self._reading(prompts)[1]) if share > 1 else 0
        return {
            "adapter": trained,
            "optimizer": _ADAM * trained,
            "training": training,
            "scoring": int(peak + left * (share - 1)),
        }

    # What is trained

    @contextmanager
    def _attached(self) -> Iterator[Any]:
        method = self._plan.methods[0]
        trainable = method.attach(self._model, self._config.lora, stage=1, seed=0)
        give_fake_tensors(trainable.model, self._mode)
        try:
            yield trainable
        finally:
            trainable.detach()

    def _trained_bytes(self) -> int:
        with self._attached() as trainable:
            self._shares_prompts = not isinstance(trainable, PromptPool)
            return held_bytes(p for p in trainable.model.parameters() if p.requires_grad)

    def _longest_batch(self) -> tuple[Batch, bool]:
        """The micro-batch with the most positions, and whether its stage recomputes activations."""
        found: list[tuple[int, Batch, bool]] = []
        for task, examples in zip(self._plan.tasks, self._plan.encoded, strict=True):
            if not examples:
                continue
            options = self._config.train_options(task.name)
            rows = options.micro_batch(self._processes)
            lengths = examples.lengths
            longest = [examples[i] for i in np.argsort(lengths, kind="stable")[-rows:].tolist()]
            batch = self._batch(longest, beginnings_of(examples))
            found.append((batch["input_ids"].numel(), batch, options.gradient_checkpointing))
        return max(found, key=lambda f: f[0])[1:]

    def _batch(self, examples: Sequence[TokenizedExample], beginnings: Beginnings) -> Batch:
        begun = self._begun(examples)
        if self._paths.training != "packed":
            return self._collate()(begun)
        soft = [0] * self._plan.soft_tokens
        return pack(begun, beginnings=[soft + ids for ids in beginnings] if self._shares_prompts else ())

    def _begun(self, examples: Sequence[TokenizedExample]) -> list[TokenizedExample]:
        """Examples as long as with the soft tokens before them, and with as many tokens in common."""
        count = self._plan.soft_tokens
        return [e.beginning_with([0 if self._shares_prompts else i] * count) for i, e in enumerate(examples)]

    def _step_peak(self, batch: Batch, checkpoints: bool) -> int:
        """The most bytes alive during a micro-batch's forward and backward pass, without what is there before."""
        packs = self._paths.training == "packed"
        with self._attached() as trainable:
            if checkpoints:
                trainable.enable_checkpointing()
            extra = self._extra_loss(trainable)
            trainable.model.train()
            packed = packed_attention(self._model) if packs else nullcontext()
            with fast_modules(trainable.model, tries=False), packed, pretending(self._device), self._mode:
                inputs = fake_batch(batch, self._mode)
                with LiveBytes([*held_tensors(trainable.model), *tree_leaves(inputs)]) as live:
                    logits, targets = answer_logits(trainable.model, inputs)
                    loss = F.cross_entropy(
                        logits.flatten(0, 1).float(),
                        targets.flatten(),
                        ignore_index=IGNORED,
                        reduction="sum",
                    )
                    if extra is not None:
                        loss = loss + extra(logits, inputs)
                    loss.backward()  # type: ignore[no-untyped-call]
            trainable.model.zero_grad()
        return int(live.peak)

    def _extra_loss(self, trainable: Any) -> Callable[..., Any] | None:
        """What a method's addition to a micro-batch's loss costs from the second stage on; None without one.

        That is a second forward pass, and two distributions to compare. The method's own code may pick answers by
        their values, which fake tensors do not have.
        """
        method = self._plan.methods[-1]
        if type(method).extra_loss is Method.extra_loss:
            return None

        def added(logits: Tensor, inputs: Batch) -> Tensor:
            with torch.no_grad(), trainable.without():
                before = answer_logits(trainable.model, inputs)[0]
            old, new = (F.log_softmax(one.float(), dim=-1) for one in (before, logits))
            return F.kl_div(new, old, reduction="sum", log_target=True)

        return added

    # What answers

    def _longest_prompts(self) -> tuple[list[TokenizedExample], float]:
        """The prompts of one pass, of the task with the most tokens in a batch; the batch's tokens, in such passes."""
        found: list[tuple[int, list[TokenizedExample], float]] = []
        for task in self._plan.tasks:
            if not task.test:
                continue
            rows = self._plan.encoder.encode(task, task.test)
            size = self._config.evaluate.batch_size if self._paths.prefill != "single" else 1
            lengths = rows.prompt_lengths
            order = np.argsort(lengths, kind="stable")[::-1][:size].tolist()
            prompts = self._begun([TokenizedExample(rows[i].prompt_ids, []) for i in order])
            tokens = [len(p.prompt_ids) for p in prompts]
            if decode_of(task, self._config.evaluate) == "generate":
                tokens = [n + self._plan.encoder.max_target_tokens for n in tokens]
            first = prompts
            if self._device == "cpu":
                ends = np.cumsum(tokens)
                first = prompts[: max(int((ends <= _PASS_TOKENS).sum()), 1)]
            found.append((sum(tokens), first, sum(tokens) / sum(tokens[: len(first)])))
        return max(found, key=lambda f: f[0])[1:] if found else ([], 0.0)

    def _reading(self, prompts: Sequence[TokenizedExample]) -> tuple[int, int]:
        """Bytes at the peak of a prefill, and those that it leaves: keys, values and logits."""
        if not prompts:
            return 0, 0
        self._model.eval()
        with (
            pretending(self._device),
            self._mode,
            torch.no_grad(),
            LiveBytes(held_tensors(self._model)) as live,
        ):
            prefiller = Prefiller(
                self._model,
                prompts,
                pad_id=0,
                packs=self._paths.prefill == "packed",
                kv_cache=self._paths.kv_cache,
            )
            kept = prefiller.run(prompts)
            now = live.now
            del kept
        return live.peak, now

    def _collate(self) -> Collator:
        return Collator(0, self._plan.encoder.encoder_decoder)

    # From few layers to all

    def _over_layers(self, measure: Callable[[], int]) -> int:
        """What `measure` would give on all layers, from a few of them if they are alike."""
        lists = layer_lists(self._model)
        depth = len(lists[0]) if lists else 0
        few, more = _FEW_LAYERS, _FEW_LAYERS + 1
        if not lists or depth <= more or {len(layers) for layers in lists} != {depth}:
            return measure()
        with _only(more, lists, self._model):
            of_more = measure()
        with _only(few, lists, self._model):
            of_few = measure()
        return of_few + (depth - few) * (of_more - of_few)


@contextmanager
def _only(count: int, lists: Sequence[nn.ModuleList], model: Any) -> Iterator[None]:
    """A block in which the model has only its first layers."""
    all_layers = [list(layers) for layers in lists]
    depth = model.config.num_hidden_layers
    model.config.num_hidden_layers = count
    for layers in lists:
        del layers[count:]
    try:
        yield
    finally:
        model.config.num_hidden_layers = depth
        for layers, every in zip(lists, all_layers, strict=True):
            layers.extend(every[count:])
