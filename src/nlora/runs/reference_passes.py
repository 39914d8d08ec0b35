"""Reference passes: each example alone through unmodified transformers and PEFT, without padding, mask or cache.

`nlora.runs.preflight` compares every fast path through the model with these.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from nlora.data.task import TokenizedExample
from nlora.errors import ModelError, with_class
from nlora.models.inspection import (
    MODEL_RAISES,
    decoder_start,
    forward_parameters,
    logits_off,
    logits_tolerance,
)

if TYPE_CHECKING:
    from nlora.models.backbone import Backbone
    from nlora.models.trainable import Trainable

_GRADIENT_OFF, _SHORT_GRADIENT_OFF = 1e-2, 4e-1
"""Tolerances, relative to the norm of a layer's gradient; the second one for 16-bit models, where rounding alone moves
that of SmolLM2's worst layer by up to 0.2 on the built-in tasks. A gradient that is missing is off by 1."""
_SHORT_GRADIENTS_OFF = 1.3e-1
"""Of a 16-bit model, the root mean square over all layers. Rounding gives up to 0.11."""


class ReferencePasses:
    """Logits and gradients of reference passes.

    batches: examples that share a batch on the fast paths; the first batch is of one task.
    adapter: attached to the backbone, or soft prompts; None if only the model's answers matter.
    logits: (N, V) for each batch, those that predict the answer tokens.
    gradients: one vector for each adapted layer, for the first batch only, because they cost two more passes and the
        layers are the same for all batches.

    Raises ModelError for a model that cannot answer, or whose logits are not finite.
    """

    def __init__(
        self, backbone: Backbone, batches: Sequence[Sequence[TokenizedExample]], adapter: Trainable | None
    ) -> None:
        self.backbone, self.batches = backbone, batches
        self.model: Any = backbone.model if adapter is None else adapter.model
        self.device = next(backbone.model.parameters()).device
        self._trained: dict[str, tuple[Tensor, ...]] = {}
        if adapter is not None:
            self._trained = {name: (f.A, f.B) for name, f in adapter.factors().items()} or {
                name: (tensor,) for name, tensor in adapter.live_tensors().items()
            }
        try:
            with self.gradients_of_batch(0):
                first = self.logits_of(self.batches[0])
                self.gradients = self.gradients_at(first) if self._trained else {}
            with torch.no_grad():
                others = [self.logits_of(batch, whole=0) for batch in self.batches[1:]]
                self.logits = [first.detach(), *others]
        except MODEL_RAISES as error:
            raise ModelError(
                f"model {backbone.name}: transformers' {type(backbone.model).__name__} cannot answer a prompt "
                f"of these tasks: {with_class(error)}"
            ) from error
        if not all(torch.isfinite(logits).all() for logits in self.logits):
            raise ModelError(f"model {backbone.name}: its logits are not finite; try dtype: float32")

    def logits_of(self, examples: Sequence[TokenizedExample], *, whole: int = 1) -> Tensor:
        """(N, V) logits that predict the answers' tokens, each example alone and without padding.

        whole: for how many examples at the end the prompt's logits are computed too. Leaving them out, if the model
        can, saves a fifth of a SmolLM2 pass; the whole ones show that the model does that correctly.
        """
        logits = []
        knows = "logits_to_keep" in forward_parameters(self.backbone.model)
        spared = {id(e) for e in examples[: len(examples) - whole]} if knows else set()
        for e in examples:
            if self.backbone.encoder_decoder:
                ids = torch.tensor([e.prompt_ids], device=self.device)
                answer = [decoder_start(self.backbone.model), *e.answer_ids[:-1]]
                decoder = torch.tensor([answer], device=self.device)
                output = self.model(input_ids=ids, decoder_input_ids=decoder, use_cache=False)
                logits.append(output.logits[0])
            else:
                ids = torch.tensor([[*e.prompt_ids, *e.answer_ids[:-1]]], device=self.device)
                keep = {"logits_to_keep": len(e.answer_ids)} if id(e) in spared else {}
                output = self.model(input_ids=ids, use_cache=False, **keep)
                logits.append(output.logits[0, -len(e.answer_ids) :])
        return torch.cat(logits)

    def by_example(self, batch: int) -> tuple[Tensor, ...]:
        """The logits of a batch, (answer tokens, V) for each of its examples."""
        return torch.split(self.logits[batch], [len(e.answer_ids) for e in self.batches[batch]])

    def gradients_of_batch(self, batch: int) -> Any:
        """A context that records gradients if this batch's gradients are compared."""
        return torch.enable_grad() if batch == 0 and self._trained else torch.no_grad()

    def gradients_at(self, logits: Tensor) -> dict[str, Tensor]:
        """Gradients of the summed cross-entropy of the first batch's answers, one vector for each adapted layer."""
        targets = [token for e in self.batches[0] for token in e.answer_ids]
        loss = F.cross_entropy(logits.float(), torch.tensor(targets, device=self.device), reduction="sum")
        flat = [tensor for tensors in self._trained.values() for tensor in tensors]
        found = iter(torch.autograd.grad(loss, flat, allow_unused=True))
        return {
            name: torch.cat([_or_zeros(next(found), tensor).flatten() for tensor in tensors])
            for name, tensors in self._trained.items()
        }

    # Comparing a fast path

    def differs(self, found: Tensor, expected: Tensor, at_most: float = 0.0) -> str | None:
        """How far logits are off, in words; None if within the tolerance. at_most: a larger tolerance."""
        off = logits_off(self.backbone.model, found, expected)
        if off <= max(logits_tolerance(self.backbone.model), at_most):
            return None
        return f"moves the logits by {off:.2g} of their size"

    def gradients_differ(self, found: dict[str, Tensor]) -> str | None:
        """How far gradients are off, in words; None if within the tolerance."""
        short = logits_tolerance(self.backbone.model) > 1e-2
        limit = _SHORT_GRADIENT_OFF if short else _GRADIENT_OFF
        norms = {name: float(gradient.norm()) for name, gradient in self.gradients.items()}
        least = 1e-3 * max(norms.values())  # smaller ones are all rounding
        off = {n: float((g - self.gradients[n]).norm()) / max(norms[n], least) for n, g in found.items()}
        worst = max(off, key=off.__getitem__)
        typical = math.sqrt(math.fsum(value * value for value in off.values()) / len(off))
        if short and not typical <= _SHORT_GRADIENTS_OFF:
            return f"moves the gradient of a layer by {typical:.2g} of it"
        return f"moves the gradient of {worst} by {off[worst]:.2g} of it" if not off[worst] <= limit else None

    # What no path can fix

    def refuse_targets_without_gradient(self) -> None:
        """Raise ModelError for layers that no text reaches, except for some of many experts if others are reached."""
        reached = {kind(name) for name, gradient in self.gradients.items() if gradient.any()}
        lost = [name for name in self.gradients if kind(name) not in reached]
        if lost:
            more = f" and {len(lost) - 1} more layers" if len(lost) > 1 else ""
            rest = "; name the other layers" if len(lost) < len(self.gradients) else "; name others"
            raise ModelError(
                f"lora.targets: {lost[0]}{more} get no gradient from the tasks' texts, so their updates would stay 0"
                f"{rest} in lora.targets"
            )

    @torch.no_grad()
    def refuse_what_sees_ahead(self) -> None:
        """Raise ModelError for a model that sees the answer before giving it, such as BERT as an encoder."""
        for e, logits in zip(self.batches[0], self.by_example(0), strict=True):
            if len(e.answer_ids) < 2:
                continue
            # The same length, so that all tokens before the exchanged one round equally.
            *same, old, end = e.answer_ids
            new = next((token for token in e.prompt_ids if token != old), end)
            changed = self.logits_of([TokenizedExample(e.prompt_ids, [*same, new, end])])
            if self.differs(changed[:-1], logits[:-1]):
                raise ModelError(
                    f"model {self.backbone.name}: the predictions of {type(self.backbone.model).__name__} depend "
                    "on the tokens that follow, including the answer itself; use a causal language model (a BERT's "
                    "config.json must say is_decoder: true)"
                )
            return


def _or_zeros(gradient: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if gradient is None else gradient


def kind(name: str) -> str:
    """A layer's name without its numbers (of the block, and of the expert in it)."""
    return re.sub(r"\d+", "*", name)
