"""Elastic weight consolidation: the more earlier tasks depend on a weight, the less it may move.

Source: arXiv 1612.00796, in the online form (arXiv 1712.03847): the Fisher information of all earlier tasks is summed
and the penalty is measured from the latest weights, so that neither memory nor time grows with the number of tasks.
Incremental LoRA, with this added to the loss of an optimizer step:

    weight / 2 · Σ_modules Σ F ⊙ (s·B·A)²,      F = Σ_{i<t} F_i

Earlier updates are merged into the backbone, so s·B·A is exactly how far the adapted layers' weights have moved since
the last task. F_i is (out, in): the squared gradient of the answer's log-likelihood, averaged over `samples` training
examples of task i, at the weights after task i. This is the empirical Fisher information, which uses the gold answer
instead of one sampled from the model.

Departures from the baseline "EWC" in the tables of O-LoRA and N-LoRA (arXiv 2310.14152, 2410.10179), which fine-tunes
all parameters: here only the adapted layers move, by low-rank updates. The released code has no such baseline.

Pitfalls:
- The right weight depends on model and data: the Fisher information of a well-learned task is small.
- F takes as much memory and disk space as the adapted layers' weights, in float32: 4 bytes for each entry, on the
  model's device while a stage trains.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from nlora.errors import RunError
from nlora.methods._devices import beside
from nlora.methods.base import Memory, Method, MethodOptions

if TYPE_CHECKING:
    from torch import Tensor, nn

    from nlora.config.schema import LoraOptions
    from nlora.data.task import TokenizedExample
    from nlora.models.lora_adapter import AdapterState, ModuleShape
    from nlora.models.trainable import Trainable


class EwcOptions(MethodOptions):
    """How strongly the weights are held in place, and from how many examples their importance is estimated."""

    weight: float = Field(
        1000.0,
        ge=0,
        allow_inf_nan=False,
        description="λ, the weight of half the Fisher-weighted squared update; 0: exactly incremental LoRA.",
    )
    samples: int = Field(
        64, ge=1, description="Training examples per task that its Fisher information is estimated from."
    )


class Ewc(Method[EwcOptions]):
    """Weights the square of the update by the summed Fisher information of the tasks so far."""

    needs_float_weights = True

    def __init__(self, options: EwcOptions) -> None:
        super().__init__(options)
        self._fisher: Memory = {}  # of the tasks so far, on the CPU
        self._here: dict[str, Tensor] = {}  # the same on the layers' device, while a stage has a penalty

    def check_adopted(self, update: AdapterState, lora: LoraOptions) -> str | None:
        return "ewc needs the Fisher information of earlier tasks, which an adapter does not have"

    def held_bytes(self, modules: Sequence[ModuleShape], earlier: int, device: str) -> int:
        has_copy = device != "cpu" and earlier and self.options.weight
        return self.kept_bytes(modules) if has_copy else 0

    def kept_bytes(self, modules: Sequence[ModuleShape]) -> int:
        return 4 * sum(m.entries for m in modules)

    def restore(self, memory: Memory) -> None:
        self._fisher = memory

    def begin_task(self, adapter: Trainable, earlier: Sequence[AdapterState]) -> None:
        self.release()
        if not earlier or self.options.weight == 0:
            return
        factors = adapter.factors()
        if missing := sorted(factors.keys() - self._fisher.keys()):
            what = "adapt the layers that the earlier tasks had, or learn these again"
            raise RunError(f"ewc has no Fisher information for {missing[0]}; {what}")
        if wrong := next((name for name, f in factors.items() if self._fisher[name].shape != f.shape), None):
            what = "has another shape than its weight; the memory is of another method or model"
            raise RunError(f"the Fisher information of {wrong} {what}")
        self._here = {name: self._fisher[name].to(f.A.device) for name, f in factors.items()}

    def release(self) -> None:
        self._here = {}

    def penalty(self, adapter: Trainable) -> Tensor | None:
        if not self._here:
            return None
        from nlora.kernels.weighted_square import weighted_square_sum

        factors = adapter.factors()
        return (self.options.weight / 2) * weighted_square_sum(
            [f.A for f in factors.values()],
            [f.B for f in factors.values()],
            [f.scaling for f in factors.values()],
            [beside(self._here, name, f.A) for name, f in factors.items()],
        )

    def end_task(
        self, model: nn.Module, modules: Sequence[str], examples: Sequence[TokenizedExample], pad_id: int
    ) -> Memory:
        from nlora.methods._fisher import fisher_information
        from nlora.methods._inputs import spaced

        new = fisher_information(model, modules, spaced(examples, self.options.samples), pad_id)
        old, self._fisher = self._fisher, {}  # the next stage is given the sum, maybe with options of its own
        return {name: F + old[name] if name in old else F for name, F in new.items()}
