"""What a model gives for a run's texts in plain passes: each example alone, through transformers and PEFT as they are.

    plain = PlainPasses(backbone, batches, adapter)
    plain.logits[0]                              # (N, V), those that predict the answers of the first batch
    plain.differs(found, plain.logits[0])        # None; or "moves the logits by 0.12 of the largest"

No padding, no mask, no cache. `nlora.runs.tryout` holds every other way through the model against this.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from nlora.data.task import TokenizedExample
from nlora.errors import ModelError
from nlora.models.inspection import (
    MODEL_RAISES,
    decoder_start,
    forward_parameters,
    logits_off,
    logits_tolerance,
)

if TYPE_CHECKING:
    from nlora.models.backbone import Backbone
    from nlora.models.lora_adapter import LoraAdapter

_GRADIENT_OFF, _SHORT_GRADIENT_OFF = 1e-2, 2e-1
"""Of the norm of a layer's gradient; the second one for models of 16 bits."""


class PlainPasses:
    """Logits and gradients of plain passes.

    batches: examples that share a batch in other ways; those of the first are of one task. adapter: attached to the
    backbone; None: only the model's answers matter.
    logits: of each batch, (N, V). gradients: of each adapted layer, one vector, on the first batch; they cost twice a
    pass, and the layers are the same.

    Raises ModelError for a model that cannot answer or gives no finite numbers.
    """

    def __init__(
        self, backbone: Backbone, batches: Sequence[Sequence[TokenizedExample]], adapter: LoraAdapter | None
    ) -> None:
        self.backbone, self.batches = backbone, batches
        self.model: Any = backbone.model if adapter is None else adapter.model
        self.device = next(backbone.model.parameters()).device
        self._factors: dict[str, tuple[Tensor, Tensor]] = {}
        if adapter is not None:
            self._factors = {name: (f.A, f.B) for name, f in adapter.factors().items()}
        try:
            with self.gradients_of_batch(0):
                first = self.logits_of(self.batches[0])
                self.gradients = self.gradients_at(first) if self._factors else {}
            with torch.no_grad():
                others = [self.logits_of(batch, whole=0) for batch in self.batches[1:]]
                self.logits = [first.detach(), *others]
        except MODEL_RAISES as error:
            raise ModelError(
                f"model {backbone.name}: transformers' {type(backbone.model).__name__} cannot answer a prompt "
                f"of these tasks: {first_line(error)}"
            ) from error
        if not all(torch.isfinite(logits).all() for logits in self.logits):
            raise ModelError(f"model {backbone.name}: its logits are no finite numbers; try dtype: float32")

    def logits_of(self, examples: Sequence[TokenizedExample], *, whole: int = 1) -> Tensor:
        """(N, V) logits that predict the answers' tokens, each example alone and without padding.

        whole: of how many examples, from the last on, the prompts' logits are computed, too. Where the model knows how
        to leave them out, this spares a fifth of a pass of SmolLM2; that it does so rightly, the others show.
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
        """A batch's logits, (answer tokens, V) for each of its examples."""
        return torch.split(self.logits[batch], [len(e.answer_ids) for e in self.batches[batch]])

    def gradients_of_batch(self, batch: int) -> Any:
        """A block in which gradients are recorded, if those of this batch are compared."""
        return torch.enable_grad() if batch == 0 and self._factors else torch.no_grad()

    def gradients_at(self, logits: Tensor) -> dict[str, Tensor]:
        """Of the summed cross-entropy of the first batch's answers, one vector for each adapted layer."""
        targets = [token for e in self.batches[0] for token in e.answer_ids]
        loss = F.cross_entropy(logits.float(), torch.tensor(targets, device=self.device), reduction="sum")
        flat = [factor for pair in self._factors.values() for factor in pair]
        found = torch.autograd.grad(loss, flat, allow_unused=True)
        return {
            name: torch.cat(
                [_or_zeros(g, f).flatten() for g, f in zip(found[2 * i :][:2], pair, strict=True)]
            )
            for i, (name, pair) in enumerate(self._factors.items())
        }

    # What another way gives

    def differs(self, found: Tensor, expected: Tensor, at_most: float = 0.0) -> str | None:
        """How far logits are off, in words; None: no further than rounding. at_most: what else is rounding here."""
        off = logits_off(found, expected)
        if off <= max(logits_tolerance(self.backbone.model), at_most):
            return None
        return f"moves the logits by {off:.2g} of the largest"

    def gradients_differ(self, found: dict[str, Tensor]) -> str | None:
        """The same of the gradients."""
        short = logits_tolerance(self.backbone.model) > 1e-2
        limit = _SHORT_GRADIENT_OFF if short else _GRADIENT_OFF
        norms = {name: float(gradient.norm()) for name, gradient in self.gradients.items()}
        least = 1e-3 * max(norms.values())  # rounding is all there is of smaller ones
        off = {n: float((g - self.gradients[n]).norm()) / max(norms[n], least) for n, g in found.items()}
        worst = max(off, key=off.__getitem__)
        return f"moves the gradient of {worst} by {off[worst]:.2g} of it" if not off[worst] <= limit else None

    # What no way can mend

    def refuse_targets_without_gradient(self) -> None:
        """Raises ModelError for layers that no text reaches; not for one of many experts, if others are reached."""
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
        """Raises ModelError for a model that looks at the answer before it gives it: BERT as an encoder, for one."""
        for e, logits in zip(self.batches[0], self.by_example(0), strict=True):
            if len(e.answer_ids) < 2:
                continue
            # Of the same length, so that rounding is the same for all tokens before the one that is exchanged.
            *same, old, end = e.answer_ids
            new = next((token for token in e.prompt_ids if token != old), end)
            changed = self.logits_of([TokenizedExample(e.prompt_ids, [*same, new, end])])
            if self.differs(changed[:-1], logits[:-1]):
                raise ModelError(
                    f"model {self.backbone.name}: what {type(self.backbone.model).__name__} predicts changes with "
                    "the tokens that follow, the answer itself among them; take a causal language model (a BERT's "
                    "config.json must say is_decoder: true)"
                )
            return


def _or_zeros(gradient: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if gradient is None else gradient


def kind(name: str) -> str:
    """A layer's name without its numbers: those of a block, and of an expert in it."""
    return re.sub(r"\d+", "*", name)


def first_line(error: Exception) -> str:
    """What an exception is and says, in one line."""
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__
