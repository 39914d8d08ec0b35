"""What gpu.py checks: that a device computes what nlora's own code gives on a CPU, or plain transformers and PEFT."""

from __future__ import annotations

import importlib
import importlib.util
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from accelerate.utils import send_to_device
from torch import Tensor
from torch.nn import functional as F

from gpu_material import END, Row, attempt, examples_of, model_of, tokenizer
from nlora.config.schema import LoraOptions
from nlora.data.collate import IGNORED, Collator
from nlora.data.packing import pack
from nlora.data.task import TokenizedExample
from nlora.kernels.dropout import kept_entries
from nlora.kernels.l1 import update_l1_sum
from nlora.kernels.weighted_square import weighted_square_sum
from nlora.methods._fisher import fisher_information
from nlora.models.backbone import load_backbone
from nlora.models.inspection import Batch
from nlora.models.logits import answer_logits
from nlora.models.lora_adapter import LoraAdapter
from nlora.models.merged_updates import MergedUpdates
from nlora.models.packed_attention import packed_attention
from nlora.models.packed_layout import ONE_CALL_TOKENS
from nlora.training.fast_modules import fast_modules

LORA = LoraOptions(r=4, alpha=8, dropout=0.0)
EVERYWHERE = ("cpu", "cuda")
TOLERANCES = {"float32": (1e-3, 1e-2), "bfloat16": (4e-2, 2e-1)}
"""Of logits, as a share of the largest, and of each layer's gradient, as a share of its norm."""
Answers = tuple[Tensor, list[Tensor]]


class Trial:
    """A small model with an adapter that is not zero, on one device."""

    def __init__(self, device: str, dtype: str, model: Any = None) -> None:
        self.device, self.dtype = device, dtype
        self.base = model if model is not None else model_of("tiny", device, dtype, sharp=True)
        self.adapter = LoraAdapter.attach(self.base, LORA, seed=1)
        draw = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for f in self.adapter.factors().values():
                f.B.copy_(torch.randn(f.B.shape, generator=draw) * 0.1)
        self.examples = examples_of(6, shared=9, rests=(3, 12))

    def answers(self, *contexts: AbstractContextManager[Any], packed: bool) -> Answers:
        """Logits (N, V) that predict the answers, and the gradients of A and B: in one row, or one by one."""
        make: Callable[[list[TokenizedExample]], Batch] = pack if packed else Collator(0, False)
        groups = [self.examples] if packed else [[e] for e in self.examples]
        with ExitStack() as entered:
            for context in (*contexts, *([packed_attention(self.base)] if packed else [])):
                entered.enter_context(context)
            logits, labels = [], []
            for group in groups:
                batch = send_to_device(make(group), torch.device(self.device))
                found, targets = answer_logits(self.adapter.model, batch)
                logits.append(found[targets != IGNORED])
                labels.append(targets[targets != IGNORED])
            joined = torch.cat(logits).float()
            loss = F.cross_entropy(joined, torch.cat(labels), reduction="sum")
            trained = [p for p in self.adapter.model.parameters() if p.requires_grad]
            gradients = torch.autograd.grad(loss, trained)
        return joined.detach().cpu(), [g.float().cpu() for g in gradients]

    def agrees(self, found: Answers, right: Answers) -> tuple[str, bool]:
        """The largest differences, and whether they are rounding."""
        logits = float((found[0] - right[0]).abs().max() / right[0].abs().max())
        pairs = zip(found[1], right[1], strict=True)
        gradients = max(float((a - b).norm() / b.norm()) for a, b in pairs)
        most = TOLERANCES[self.dtype]
        return f"logits {logits:.1e}, gradients {gradients:.1e}", logits <= most[0] and gradients <= most[1]


@contextmanager
def merging(devices: Collection[str] = EVERYWHERE) -> Iterator[None]:
    """A block in which no prefix is copied on these devices, however short it is."""
    with (
        patch("nlora.models.packed_layout.MERGE_DEVICES", devices),
        patch("nlora.models.packed_layout.MERGE_FROM", 1),
        one_call(()),
    ):
        yield


@contextmanager
def one_call(devices: Collection[str] = EVERYWHERE, tokens: int = 10**6) -> Iterator[None]:
    """A block in which a batch's attention is one call on these devices, and nowhere else."""
    with (
        patch("nlora.models.packed_layout.ONE_CALL_DEVICES", devices),
        patch("nlora.models.packed_layout.ONE_CALL_TOKENS", dict.fromkeys(ONE_CALL_TOKENS, tokens)),
    ):
        yield


def checks(device: str) -> Iterator[Row]:
    """All checks."""
    for dtype in ("float32", "bfloat16"):
        for what, check in _ways(device, dtype).items():
            yield attempt("checks", f"{what}, {dtype}", check)
    for what, alone in _KERNELS.items():
        yield attempt("checks", what, partial(alone, device))
    what = "a step that is not finite"
    if importlib.util.find_spec("nlora.training.finite_guard") is None:
        yield Row("checks", what, "", "skipped: this nlora has no guard")
    else:
        yield attempt("checks", what, partial(_not_finite, device))
    for quantize in ("4bit", "8bit"):
        what = f"packed batches, {quantize}"
        if importlib.util.find_spec("bitsandbytes") is None:
            yield Row("checks", what, "", "skipped: bitsandbytes is not installed")
        elif quantize == "8bit" and device == "cpu":
            yield Row("checks", what, "", "skipped: no CUDA")
        else:
            yield attempt("checks", what, partial(_quantized, device, quantize))


def _ways(device: str, dtype: str) -> dict[str, Callable[[], tuple[str, bool]]]:
    """Ways through a model, each beside the plain one on the same device, and the plain one beside a CPU's."""

    def against_plain(
        *makes: Callable[[Trial], AbstractContextManager[Any]], packed: bool
    ) -> tuple[str, bool]:
        trial = Trial(device, dtype)
        right = trial.answers(packed=False)
        return trial.agrees(trial.answers(*(make(trial) for make in makes), packed=packed), right)

    def against_cpu() -> tuple[str, bool]:
        trial = Trial(device, dtype)
        return trial.agrees(trial.answers(packed=False), Trial("cpu", dtype).answers(packed=False))

    def checkpointed() -> tuple[str, bool]:
        trial = Trial(device, dtype)
        right = trial.answers(packed=False)
        trial.adapter.enable_checkpointing()
        trial.adapter.model.train()
        return trial.agrees(trial.answers(packed=True), right)

    def merged(trial: Trial) -> AbstractContextManager[Any]:
        return merging()

    def by_kind(trial: Trial) -> AbstractContextManager[Any]:
        return one_call(())

    def together(trial: Trial) -> AbstractContextManager[Any]:
        return one_call()

    def faster(trial: Trial) -> AbstractContextManager[Any]:
        return fast_modules(trial.adapter.model, devices=EVERYWHERE)

    return {
        "plain batches beside a CPU's": against_cpu,
        "packed batches, attention in one call": partial(against_plain, together, packed=True),
        "packed batches, a call for each kind of token": partial(against_plain, by_kind, packed=True),
        "packed batches, the prefix not copied": partial(against_plain, merged, packed=True),
        "faster modules": partial(against_plain, faster, packed=False),
        "faster modules, packed batches, the prefix not copied": partial(
            against_plain, merged, faster, packed=True
        ),
        "faster modules, packed batches, attention in one call": partial(
            against_plain, together, faster, packed=True
        ),
        "gradient checkpointing, packed batches": checkpointed,
    }


def _masks(device: str) -> tuple[str, bool]:
    """Share of dropped entries, of which the seed decides which."""
    x = torch.empty(1_000_003, device=device)
    torch.manual_seed(5)
    mask = kept_entries(x, 0.1)
    torch.manual_seed(5)
    same = torch.equal(mask, kept_entries(x, 0.1))
    share = 1 - float(mask.float().mean())
    return f"{share:.4f} dropped, the seed decides: {same}", same and abs(share - 0.1) < 0.002


def _penalties(device: str) -> tuple[str, bool]:
    """update_l1 and the weighted square beside the CPU's, with their gradients."""
    draw = torch.Generator().manual_seed(1)
    shapes = [(64, 48)] * 5 + [(16, 48)] * 3
    A = [torch.randn(8, n, generator=draw) for _, n in shapes]
    B = [torch.randn(m, 8, generator=draw) for m, _ in shapes]
    weights = [torch.rand(shape, generator=draw) for shape in shapes]

    def found(place: str) -> list[Tensor]:
        As, Bs = ([x.to(place).requires_grad_() for x in some] for some in (A, B))
        scales = [2.0] * len(shapes)
        values = [
            update_l1_sum(As, Bs, scales),
            weighted_square_sum(As, Bs, scales, [F.to(place) for F in weights]),
        ]
        parts = [g for v in values for g in torch.autograd.grad(v, [*As, *Bs])]
        return [t.detach().cpu() for t in (*values, *parts)]

    pairs = zip(found(device), found("cpu"), strict=True)
    most = max(float((a - b).norm() / b.norm()) for a, b in pairs)
    return f"{most:.1e}", most < 1e-4


def _merging(device: str) -> tuple[str, bool]:
    """Updates are added to the weights and taken out again without a trace."""
    trial = Trial(device, "float32")
    state = trial.adapter.state()
    trial.adapter.detach()
    layers = {name: trial.base.get_submodule(name) for name in state}
    before = {name: layer.weight.clone() for name, layer in layers.items()}
    merged = MergedUpdates(trial.base, list(state))
    merged.activate([state, state])
    changed = {n: layer.weight.cpu() - before[n].cpu() for n, layer in layers.items()}
    exact = all(torch.allclose(changed[n], 2 * f.update().cpu(), atol=1e-5) for n, f in state.items())
    merged.deactivate()
    back = all(torch.equal(layer.weight, before[n]) for n, layer in layers.items())
    return f"added: {exact}, taken out bit for bit: {back}", exact and back


def _fisher(device: str) -> tuple[str, bool]:
    """ewc's Fisher information beside the CPU's."""
    found = []
    for place in (device, "cpu"):
        trial = Trial(place, "float32")
        names = list(trial.adapter.factors())
        trial.adapter.detach()
        found.append(fisher_information(trial.base, names, trial.examples, pad_id=0))
    most = max(float((found[0][n] - f).norm() / f.norm()) for n, f in found[1].items())
    return f"{most:.1e}", most < 1e-3


def _not_finite(device: str) -> tuple[str, bool]:
    """A step that is not finite, and those after it, leave the weights as they are."""
    guards: Any = importlib.import_module("nlora.training.finite_guard")
    weight = torch.ones(3, device=device, requires_grad=True)
    optimizer = torch.optim.AdamW([weight], lr=0.1, fused=True)
    guard = guards.FiniteGuard(optimizer, defers=True)
    kept = []
    for step, gradient in enumerate((1.0, float("nan"), 1.0), start=1):
        weight.grad = torch.full_like(weight, gradient)
        guard.before_step(step, loss=1.0, penalty=0.0, gradient_norm=weight.grad.norm(), rows=[])
        optimizer.step()
        kept.append(weight.detach().clone())
    moved = not torch.equal(kept[0], torch.ones_like(kept[0]))
    stopped = torch.equal(kept[0], kept[1]) and torch.equal(kept[1], kept[2])
    try:
        guard.check()
        named = False
    except guards.NotFiniteError as error:
        named = (error.what, error.step) == ("gradient", 2)
    return f"moved {moved}, stopped {stopped}, named {named}", moved and stopped and named


_KERNELS: dict[str, Callable[[str], tuple[str, bool]]] = {
    "masks of dropout": _masks,
    "penalties beside a CPU's": _penalties,
    "merging of updates": _merging,
    "Fisher information beside a CPU's": _fisher,
}


def _quantized(device: str, quantize: Any) -> tuple[str, bool]:
    """A quantized model, packed and one by one."""
    with tempfile.TemporaryDirectory() as folder:
        model_of("tiny", "cpu", sharp=True).save_pretrained(Path(folder))
        tokenizer().save_pretrained(folder)
        backbone = load_backbone(folder, dtype="bfloat16", quantize=quantize)
    assert backbone.tokenizer.eos_token_id == END
    trial = Trial(device, "bfloat16", backbone.model)
    return trial.agrees(trial.answers(packed=True), trial.answers(packed=False))
