"""InfLoRA: A is frozen off the inputs of all earlier tasks, so that B changes nothing of what these compute.

Source: arXiv 2404.00228 (CVPR 2024) and its released code for image classification. A fresh adapter per task, with the
earlier ones merged into the backbone. For each layer, X are the inputs of the new task's tokens, and the rows of G an
orthonormal basis of the inputs of earlier tasks:

    A = Uᵀ / √3,   U: the r leading eigenvectors of (I - GᵀG)·RRᵀ·(I - GᵀG),   R = XXᵀ

A is frozen and B is trained, so s·B·A·x = 0 for every x in the span of G. The first task has no G. After task t of T,
the leading directions of its own R, seen with its update, off G, join G until G has this share of the energy ‖R‖²_F:

    ε_t = threshold + (last_threshold - threshold) · (t - 1) / T

`spectrum: inputs` takes R = X, as in GPM (arXiv 2103.09762). 1/√3 is about the length of the rows that a fresh adapter
has. Layers that read the same tensor (q, k and v) share X and G.

Departures from the released code:
- Energy is summed up to the first direction that reaches ε_t; the release leaves that one out after the first task.
- G is kept as it is, with at most `in` rows. DualGPM keeps the rest of the space instead once that is smaller.
- XXᵀ is estimated from `samples` examples instead of all, and dropout acts on the update's input.
- It learns layers of a language model. The release has one key and one value projection per block of an image model,
  and heads for the classes of each task.

Pitfalls:
- In a language model, a few directions have most of the energy of XXᵀ. With `spectrum: covariance` G may then be only
  these, and protects little else; `inputs` keeps off many more.
- A layer learns nothing once G fills its space; a warning names such layers. `spectrum: inputs`, a large threshold, and
  many tasks lead there.
- XXᵀ and G take up to 4·in² bytes each for every distinct input, and an eigendecomposition in O(in³).
- Only half of an adapter is trained: a larger lora.r or learning rate than for other methods may be fair.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from nlora.errors import InputErrors, Problem, RunError
from nlora.methods.base import Memory, Method, MethodOptions

if TYPE_CHECKING:
    from torch import Tensor, nn

    from nlora.config.schema import LoraOptions
    from nlora.data.task import TokenizedExample
    from nlora.methods._inputs import Moments
    from nlora.models.lora_adapter import AdapterState, ModuleShape
    from nlora.models.trainable import Trainable

log = logging.getLogger("nlora")


class InfloraOptions(MethodOptions):
    """How much of the earlier tasks' inputs is kept off limits, and from how many examples it is estimated."""

    threshold: float = Field(
        0.98,
        ge=0,
        le=1,
        description="ε, the share of the energy of the first task's inputs that later tasks keep off; the released "
        "code uses 0.95 to 0.98.",
    )
    last_threshold: float = Field(
        1.0,
        ge=0,
        le=1,
        description="What the share grows towards over the sequence; the same as threshold: it does not depend on the "
        "number of tasks.",
    )
    spectrum: Literal["covariance", "inputs"] = Field(
        "covariance",
        description="R, whose energy is measured: covariance, XXᵀ, as in the released code; inputs, X itself, as in "
        "GPM, which keeps off more directions.",
    )
    samples: int = Field(128, ge=1, description="Training examples per task that its inputs are taken from.")


class Inflora(Method[InfloraOptions]):
    """Designs A from the new task's inputs in the null space of the earlier ones, and trains B alone."""

    def __init__(self, options: InfloraOptions) -> None:
        super().__init__(options)
        self._tasks, self._stage = 1, 1
        self._bases: dict[str, Tensor] = {}  # G (k, in) by module; the same tensor for one input
        self._moments: Moments = {}  # of the stage that begins
        self._A: dict[str, Tensor] = {}  # the live factors

    def check_sequence(self, tasks: int) -> list[Problem]:
        self._tasks = tasks
        return []

    def check_adopted(self, update: AdapterState, lora: LoraOptions) -> str | None:
        return "inflora needs the inputs of earlier tasks, which an adapter does not have"

    def kept_bytes(self, modules: Sequence[ModuleShape]) -> int:
        return 4 * sum(m.in_features**2 for m in modules)  # if no layers share an input

    def see_examples(
        self, model: nn.Module, modules: Sequence[str], examples: Sequence[TokenizedExample], pad_id: int
    ) -> None:
        from nlora.methods._inputs import input_moments, spaced

        self._moments = input_moments(model, modules, spaced(examples, self.options.samples), pad_id)

    def restore(self, memory: Memory) -> None:
        self._bases = {name: G for names, G in memory.items() for name in names.split(" ")}

    def begin_task(self, adapter: Trainable, earlier: Sequence[AdapterState]) -> None:
        import torch

        from nlora.methods._subspace import orthonormal_off

        self._stage = len(earlier) + 1
        if not earlier:
            self._bases = {}
        factors = adapter.factors()
        if not self._moments:
            raise RunError("inflora has not seen the examples of this task")
        if earlier and (missing := sorted(factors.keys() - self._bases.keys())):
            raise RunError(
                f"inflora has no inputs of earlier tasks for {missing[0]}; run the earlier stages again"
            )
        self._A, full = {}, []
        for names, moments in self._moments.items():
            r, n_in = factors[names[0]].A.shape
            leading = _directions(self._squared(moments), self._basis(names[0], n_in))[1][:r]
            for name in names:
                A = factors[name].A
                # A fresh row for every direction that the task's inputs do not have
                rows = orthonormal_off(self._basis(name, n_in), [*leading, *A.detach().cpu().double()], r)
                full += [] if len(rows) else [name]
                with torch.no_grad():
                    A.zero_()[: len(rows)] = (rows / 3**0.5).to(A)
                self._A[name] = A.requires_grad_(False)
        self._moments = {}
        _tell(full, len(factors))

    def state_dict(self) -> Memory:
        """A, which another machine would design a little otherwise."""
        return {name: A.detach() for name, A in self._A.items()}

    def load_state_dict(self, state: Memory) -> None:
        for name, A in self._A.items():
            A.copy_(state[name])

    def end_task(
        self, model: nn.Module, modules: Sequence[str], examples: Sequence[TokenizedExample], pad_id: int
    ) -> Memory:
        from nlora.methods._inputs import input_moments, spaced
        from nlora.methods._subspace import extended

        options = self.options
        share = (self._stage - 1) / self._tasks
        energy = options.threshold + (options.last_threshold - options.threshold) * share
        moments = input_moments(model, modules, spaced(examples, options.samples), pad_id)
        bases = {}
        for names, found in moments.items():
            G, squared = self._basis(names[0], len(found)), self._squared(found)
            values, directions = _directions(squared, G)
            bases[" ".join(names)] = extended(G, values, directions, squared.trace(), energy).float()
        self._bases, self._A = {}, {}  # the next stage is given them, maybe with options of its own
        return bases

    def _squared(self, moments: Tensor) -> Tensor:
        """RRᵀ (in, in), float64. moments: XXᵀ."""
        wide = moments.double()
        return wide @ wide if self.options.spectrum == "covariance" else wide

    def _basis(self, module: str, n_in: int) -> Tensor:
        """G (k, in) of a module, float64."""
        import torch

        return self._bases.get(module, torch.zeros(0, n_in)).double()


def _directions(squared: Tensor, G: Tensor) -> tuple[Tensor, Tensor]:
    """The eigenvalues (in,), largest first, and eigenvectors (in, in), as rows, of (I - GᵀG)·RRᵀ·(I - GᵀG)."""
    import torch

    half = squared - G.mT @ (G @ squared)
    values, vectors = torch.linalg.eigh(half - (half @ G.mT) @ G)
    return values.flip(0).clamp(min=0), vectors.flip(1).mT


def _tell(full: Sequence[str], layers: int) -> None:
    """Warn of layers that have no direction left. Raises InputErrors if no layer has."""
    what = "the inputs of earlier tasks fill the whole input space of"
    if full and len(full) == layers:
        raise InputErrors([Problem.at(("method", "threshold"), f"{what} every layer; use a smaller one")])
    if full:
        more = f" and {len(full) - 1} more layers" if len(full) > 1 else ""
        log.warning(
            "inflora: %s %s%s, which cannot learn this task; use a smaller threshold", what, full[0], more
        )
