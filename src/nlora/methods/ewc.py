"""Elastic weight consolidation: each weight is held where it is by how much the earlier tasks need it.

Source: arXiv 1612.00796; the Fisher information of all earlier tasks is summed and the penalty is taken from the
latest weights (arXiv 1712.03847, online form), so that neither memory nor time grows with the tasks. Incremental LoRA,
and added to the loss of an optimizer step:

    weight / 2 · Σ_modules Σ F ⊙ (s·B·A)²,      F = Σ_{i<t} F_i

Since earlier updates are folded in, s·B·A is exactly how far the adapted layers' weights have moved since the last
task. F_i: (out, in), the mean over `samples` training examples of task i of the squared gradient of the
answer's log-likelihood, at the weights after task i (the empirical Fisher information: the gold answer stands for a
sample of the model's own).

Departures from the baseline "EWC" in the tables of O-LoRA and N-LoRA (arXiv 2310.14152, 2410.10179), which fine-tunes
all parameters: only the adapted layers move here, by low-rank updates. The released code has no such baseline.

Pitfalls:
- The weight's scale depends on model and data: Fisher information of a well-learned task is small.
- F takes as much memory and disk as the adapted layers' weights, in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from nlora.errors import RunError
from nlora.methods.base import Memory, Method, MethodOptions

if TYPE_CHECKING:
    from torch import Tensor, nn

    from nlora.data.task import TokenizedExample
    from nlora.models.lora_adapter import AdapterState
    from nlora.models.trainable import Trainable


class EwcOptions(MethodOptions):
    """How strongly the weights are held, and from how many examples their importance is estimated."""

    weight: float = Field(
        1000.0,
        ge=0,
        allow_inf_nan=False,
        description="λ, what half the Fisher-weighted squared update is multiplied with; 0: exactly incremental LoRA.",
    )
    samples: int = Field(
        64, ge=1, description="Training examples of a task from which its Fisher information is estimated."
    )


class Ewc(Method):
    """The Fisher information of the tasks so far, and the square of the update weighted by it."""

    Options: ClassVar[type[MethodOptions]] = EwcOptions
    weights: ClassVar[Literal["any", "float"]] = "float"

    def __init__(self, options: MethodOptions) -> None:
        super().__init__(options)
        self._fisher: Memory = {}
        self._is_first = True

    def restore(self, memory: Memory) -> None:
        self._fisher = memory

    def begin_task(self, adapter: Trainable, earlier: Sequence[AdapterState]) -> None:
        self._is_first = not earlier
        names = adapter.factors().keys()
        if not self._is_first and self._weight and (missing := sorted(names - self._fisher.keys())):
            raise RunError(f"ewc has no Fisher information of {missing[0]}; run the stages before again")

    def penalty(self, adapter: Trainable) -> Tensor | None:
        if self._is_first or self._weight == 0:
            return None
        from nlora.kernels.weighted_square import weighted_square_sum

        factors = adapter.factors()
        return (self._weight / 2) * weighted_square_sum(
            [f.A for f in factors.values()],
            [f.B for f in factors.values()],
            [f.scaling for f in factors.values()],
            [self._fisher[name].to(f.A.device) for name, f in factors.items()],
        )

    def end_task(
        self, model: nn.Module, modules: Sequence[str], examples: Sequence[TokenizedExample], pad_id: int
    ) -> Memory:
        assert isinstance(self.options, EwcOptions)
        if self._weight == 0:
            return {}
        from nlora.methods._fisher import fisher_information

        n = len(examples)
        some = [examples[i * n // self.options.samples] for i in range(self.options.samples)]
        new = fisher_information(model, modules, some if n > self.options.samples else examples, pad_id)
        return {name: F + self._fisher[name] if name in self._fisher else F for name, F in new.items()}

    @property
    def _weight(self) -> float:
        assert isinstance(self.options, EwcOptions)
        return self.options.weight
