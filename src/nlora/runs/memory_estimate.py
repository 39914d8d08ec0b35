"""How much memory a run will need, before any weight is loaded.

The model's skeleton, with fake tensors, takes one step on the run's longest batch, in the way that training would take
it (`nlora.models.traced_memory`), and reads the longest prompts as scoring would. Of a deep model, only three and four
layers run: each further one adds the same.

>>> from nlora.runs.plan import make_plan
>>> estimate = estimate_memory(make_plan(nlora.load_config("support.yaml")), device="cpu")
>>> estimate.optimizer == 2 * estimate.adapter
True
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from nlora.models.backbone import load_skeleton
from nlora.models.fast_paths import default_paths
from nlora.models.quantization import Quantize, stored_format
from nlora.models.target_modules import linear_layer, shares_weight
from nlora.models.traced_memory import (
    give_fake_tensors,
    held_bytes,
    held_tensors,
    layer_lists,
)
from nlora.runs.machine_memory import free_bytes, used_bytes
from nlora.runs.memory_trace import Device, TracedRun

if TYPE_CHECKING:
    from nlora.config.schema import Config
    from nlora.runs.plan import Plan

_QUANTIZED_BYTES = {"4bit": 0.5 + 1 / 64 + 4 / (64 * 256), "8bit": 1.0}
"""Per weight: NF4 codes, a byte for each block of 64, a float for 256 of these (arXiv 2305.14314); LLM.int8()."""


_FREED = 64 * 2**20
"""Freed blocks that malloc does not give back. The peaks of benchmarks/memory.py were 70 MiB, in the median, above what
was alive at once."""


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """The bytes that a run needs at once, by what they are for.

    process: this process without the model: Python, torch, libraries, data, and what malloc keeps. weights: the
    backbone's. mapped: those of them that stay as they are in the model's files; all processes of a machine have the
    same pages. loading: the pages of the model's files, where their weights have to be converted; they are there
    while the model is loaded.
    adapter: what a stage trains. optimizer: AdamW's averages. method: what the method holds meanwhile. earlier: what is
    kept of earlier stages (updates, a method's memory). originals: the original weights for merging, which all
    processes of a machine share. training: activations and gradients of the longest micro-batch, at their peak.
    scoring: keys, values and activations of the longest prompts. free: what the device has for the run; None if it is
    not there.
    """

    device: Device
    processes: int
    process: int
    weights: int
    mapped: int
    loading: int
    adapter: int
    optimizer: int
    method: int
    earlier: int
    originals: int
    training: int
    scoring: int
    free: int | None

    @property
    def stage(self) -> int:
        """What training a stage needs beside the weights, at its peak."""
        return self.adapter + self.optimizer + self.method + self.training

    @property
    def peak(self) -> int:
        """The most that one device, or all processes on the CPU together, need at once."""
        stage = max(self.stage, self.scoring)
        if self.device == "cuda":
            return self.weights + stage
        return max(self._of_loading, self._weights + self._of_learning + self.processes * stage)

    @property
    def host(self) -> int:
        """The machine's own memory that a run on GPUs needs: all processes, the weights while they are loaded."""
        return max(self._of_loading, self._of_learning)

    @property
    def _weights(self) -> int:
        """What the weights need in a machine's memory."""
        return self.mapped + self.processes * (self.weights - self.mapped)

    @property
    def _of_loading(self) -> int:
        return self._weights + self.loading + self.processes * self.process

    @property
    def _of_learning(self) -> int:
        return self.originals + self.processes * (self.process + self.earlier)

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
    # What a run imports in addition: the Trainer, and what scores texts, which brings scikit-learn where there is one.
    import rouge_score.rouge_scorer  # noqa: F401

    import nlora.runs.sequence  # noqa: F401

    model: Any = load_skeleton(config.model, trust_remote_code=config.trust_remote_code)
    model.requires_grad_(False)
    stored = stored_format(model)
    quantized = config.quantize or stored
    paths = default_paths(model, untried=True)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    give_fake_tensors(model, mode, getattr(torch, config.dtype))
    weights = _sharded_bytes(model, processes) if config.fsdp else _weight_bytes(model, quantized)
    merges = quantized is None and _merges(plan, config, model)
    converted = 0 if stored else _converted_bytes(model, config)
    parts = TracedRun(plan, config, model, mode, paths, device, processes).parts()
    return MemoryEstimate(
        device=device,
        processes=processes,
        process=used_bytes() + _FREED,  # after the trace, which imports what a step imports (torch._dynamo)
        weights=weights,
        mapped=0 if converted or quantized else _mapped_bytes(plan, config, weights, merges),
        loading=converted,
        earlier=_kept_of_earlier(plan, merges),
        method=max(m.held_bytes(plan.modules, i, device) for i, m in enumerate(plan.methods)),
        originals=4 * _entries(plan) if merges else 0,
        free=free_bytes(device),
        **parts,
    )


def _weight_bytes(model: nn.Module, quantized: Quantize | None) -> int:
    """The backbone's weights as they will be loaded."""
    everything = held_bytes(held_tensors(model))
    if quantized is None:
        return everything
    per_weight = _QUANTIZED_BYTES[quantized]
    head = getattr(model, "get_output_embeddings", lambda: None)()
    linear = {id(m.weight): m.weight for m in model.modules() if isinstance(m, nn.Linear) and m is not head}
    wide = sum(w.numel() * w.element_size() for w in linear.values())
    return int(everything - wide + per_weight * sum(w.numel() for w in linear.values()))


def _converted_bytes(model: Any, config: Config) -> int:
    """The size of the model's files if their weights are not in the run's dtype: all processes map the same pages."""
    stored = getattr(model.config, "dtype", None)
    if not isinstance(stored, torch.dtype) or stored == getattr(torch, config.dtype):
        return 0  # the pages are the weights
    return stored.itemsize * sum(int(p.numel()) for p in model.parameters())


def _sharded_bytes(model: nn.Module, processes: int) -> int:
    """A process's share of the weights, and the whole ones that it has during a pass.

    These are two layers (FSDP2 gathers the next one early) and the head, which stays until the backward pass.
    """
    head = getattr(model, "get_output_embeddings", lambda: None)()
    layers = [held_bytes(layer.parameters()) for layers in layer_lists(model) for layer in layers]
    whole = 2 * max(layers, default=0) + (held_bytes(head.parameters()) if head is not None else 0)
    everything = held_bytes(held_tensors(model))
    return min(everything // processes + whole, everything) if processes > 1 else everything


def _mapped_bytes(plan: Plan, config: Config, weights: int, merges: bool) -> int:
    """The weights that no process writes to, if none has to be converted."""
    if config.fsdp or plan.methods[-1].trains == "weights":
        return 0
    return weights - (4 * _entries(plan) if merges else 0)


def _merges(plan: Plan, config: Config, model: nn.Module) -> bool:
    """Whether updates of earlier stages are merged into the weights."""
    if len(plan.tasks) == 1 or plan.methods[-1].trains != "adapter":
        return False
    layers = [linear_layer(model, module.name) for module in plan.modules]
    may = config.dtype == "float32" and not config.fsdp
    return may and not any(shares_weight(model, layer) for layer in layers)


def _kept_of_earlier(plan: Plan, merges: bool) -> int:
    """What the last stage keeps of the earlier ones: updates, a method's own tensors."""
    method, stages = plan.methods[-1], len(plan.tasks)
    if stages == 1 or method.trains != "adapter":
        return 0
    updates = (stages - 1) * 4 * sum(m.r * (m.in_features + m.out_features) for m in plan.modules)
    concatenated = 0 if merges else updates  # unmerged updates are kept once more
    return updates + concatenated + method.kept_bytes(plan.modules)


def _entries(plan: Plan) -> int:
    """The entries of the layers that are adapted."""
    return sum(module.entries for module in plan.modules)
