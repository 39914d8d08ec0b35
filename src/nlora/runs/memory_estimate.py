"""How much memory a run will need, before any weight is loaded.

The model's skeleton, with fake tensors, takes one step on the run's longest batch, in the way that training would take
it (`nlora.models.traced_memory`), and reads the longest prompts as scoring would. Of a deep model, only three and four
layers run: each further one adds the same.

>>> estimate = estimate_memory(make_plan(nlora.load_config("support.yaml")), device="cpu")
>>> estimate.optimizer == 2 * estimate.adapter
True
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from nlora.data.collate import IGNORED, Collator
from nlora.data.packing import pack
from nlora.data.task import TokenizedExample
from nlora.evaluation.choices import decode_of
from nlora.evaluation.prefill import Prefiller
from nlora.methods.base import Method
from nlora.models.backbone import load_skeleton
from nlora.models.fast_paths import FastPaths, default_paths
from nlora.models.logits import answer_logits
from nlora.models.packed_attention import packed_attention
from nlora.models.target_modules import linear_layer, shares_weight
from nlora.models.traced_memory import (
    LiveBytes,
    fake_batch,
    give_fake_tensors,
    held_bytes,
    held_tensors,
    layer_lists,
)
from nlora.runs.machine_memory import free_bytes, used_bytes
from nlora.training.cpu_modules import cpu_modules

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
_QUANTIZED_BYTES = {"4bit": 0.5 + 1 / 64 + 4 / (64 * 256), "8bit": 1.0}
"""Per weight: NF4 codes, a byte for each block of 64, a float for 256 of these (arXiv 2305.14314); LLM.int8()."""


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """The bytes that a run needs at once, by what they are for.

    process: this process without the model: Python, torch, libraries, data. weights: the backbone's.
    adapter: what a stage trains. optimizer: AdamW's averages. earlier: what is kept of earlier stages (original
    weights, updates, a method's memory). training: activations and gradients of the longest micro-batch, at their
    peak. scoring: keys, values and activations of the longest prompts. free: what the device has for the run; None if
    it is not there.
    """

    device: Device
    processes: int
    process: int
    weights: int
    adapter: int
    optimizer: int
    earlier: int
    training: int
    scoring: int
    free: int | None

    @property
    def peak(self) -> int:
        """The most that one device, or all processes on the CPU together, need at once."""
        stage = max(self.adapter + self.optimizer + self.training, self.scoring)
        if self.device == "cuda":
            return self.weights + stage
        return self.processes * (self.process + self.weights + self.earlier + stage)

    @property
    def host(self) -> int:
        """The machine's own memory that a run on GPUs needs: all processes, the weights while they are loaded."""
        return self.processes * (self.process + max(self.weights, self.earlier))

    @property
    def fits(self) -> bool:
        """Whether the run will fit."""
        return self.free is None or self.peak <= self.free


def estimate_memory(
    plan: Plan, config: Config | None = None, *, device: Device | None = None, processes: int = 1
) -> MemoryEstimate:
    """The memory that a plan needs.

    config: another one than the plan's, with the same tasks and model. device: None: the one that a run would take.
    """
    config = config or plan.config
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    import nlora.runs.sequence  # noqa: F401  # what a run imports in addition, the Trainer first of all

    process = used_bytes()
    model: Any = load_skeleton(config.model, trust_remote_code=config.trust_remote_code)
    model.requires_grad_(False)
    paths = default_paths(model, untried=True)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    give_fake_tensors(model, mode, getattr(torch, config.dtype))
    weights = _weight_bytes(model, config)
    kept = _kept_of_earlier(plan, config, model)
    trained = _Traced(plan, config, model, mode, paths, device, processes)
    return MemoryEstimate(
        device=device,
        processes=processes,
        process=process,
        weights=weights,
        earlier=kept,
        free=free_bytes(device),
        **trained.parts(),
    )


class _Traced:
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

    def parts(self) -> dict[str, int]:
        """adapter, optimizer, training and scoring."""
        trained = self._trained_bytes()
        examples, checkpoints = self._longest_batch()
        training = self._over_layers(lambda: self._step_peak(examples, checkpoints))
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
            return held_bytes(p for p in trainable.model.parameters() if p.requires_grad)

    def _longest_batch(self) -> tuple[list[TokenizedExample], bool]:
        """The micro-batch with the most positions, and whether its stage recomputes activations."""
        found: list[tuple[int, list[TokenizedExample], bool]] = []
        for task, examples in zip(self._plan.tasks, self._plan.encoded, strict=True):
            if not examples:
                continue
            options = self._config.train_options(task.name)
            rows = options.micro_batch_size or max(options.batch_size // self._processes, 1)
            lengths = examples.lengths
            batch = [examples[i] for i in np.argsort(lengths, kind="stable")[-rows:].tolist()]
            longest = [len(e.prompt_ids) + len(e.answer_ids) for e in batch]
            shared = examples.shared_tokens
            packed = shared + sum(n - shared for n in longest)
            positions = packed if self._paths.training == "packed" else len(batch) * max(longest)
            found.append((positions, batch, options.gradient_checkpointing))
        return max(found, key=lambda f: f[0])[1:]

    def _step_peak(self, examples: Sequence[TokenizedExample], checkpoints: bool) -> int:
        """The most bytes alive during a micro-batch's forward and backward pass, without what is there before."""
        packs = self._paths.training == "packed"
        batch = pack(examples) if packs else self._collate()(examples)
        with self._attached() as trainable:
            if checkpoints:
                trainable.enable_checkpointing()
            extra = self._extra_loss(trainable)
            trainable.model.train()
            fast = cpu_modules(trainable.model, tries=False) if self._device == "cpu" else nullcontext()
            packed = packed_attention(self._model) if packs else nullcontext()
            with fast, packed, self._mode:
                inputs = fake_batch(batch, self._mode)
                with LiveBytes([*held_tensors(trainable.model), *inputs.values()]) as live:
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
        return live.peak

    def _extra_loss(self, trainable: Any) -> Callable[..., Any] | None:
        """What a method's addition to a micro-batch's loss costs from the second stage on; None without one.

        That is a second forward pass, and two distributions to compare. The method's own code may pick answers by
        their values, which fake tensors do not have.
        """
        method = self._plan.methods[-1]
        if type(method).extra_loss is Method.extra_loss:
            return None

        def added(logits: Tensor, inputs: dict[str, Tensor]) -> Tensor:
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
            prompts = [TokenizedExample(rows[i].prompt_ids, []) for i in order]
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
        with self._mode, torch.no_grad(), LiveBytes(held_tensors(self._model)) as live:
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


def _weight_bytes(model: nn.Module, config: Config) -> int:
    """The backbone's weights as they will be loaded."""
    everything = held_bytes(held_tensors(model))
    if config.quantize is None:
        return everything
    per_weight = _QUANTIZED_BYTES[config.quantize]
    head = getattr(model, "get_output_embeddings", lambda: None)()
    linear = {id(m.weight): m.weight for m in model.modules() if isinstance(m, nn.Linear) and m is not head}
    wide = sum(w.numel() * w.element_size() for w in linear.values())
    return int(everything - wide + per_weight * sum(w.numel() for w in linear.values()))


def _kept_of_earlier(plan: Plan, config: Config, model: nn.Module) -> int:
    """What the last stage keeps of the earlier ones: original weights for merging, updates, Fisher information."""
    method, stages = plan.methods[-1], len(plan.tasks)
    if stages == 1 or method.trains == "weights":
        return 0
    r = config.lora.r
    updates = (stages - 1) * 4 * sum(r * (m.in_features + m.out_features) for m in plan.modules)
    layers = [linear_layer(model, module.name) for module in plan.modules]
    entries = sum(module.in_features * module.out_features for module in plan.modules)
    merges = config.dtype == "float32" and config.quantize is None
    merges = merges and not any(shares_weight(model, layer) for layer in layers)
    originals = 4 * entries if merges else updates  # unmerged updates are kept once more, concatenated
    fisher = 4 * entries if method.name == "ewc" else 0
    return updates + originals + fisher
