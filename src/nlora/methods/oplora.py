"""OPLoRA: updates leave the leading singular directions of the weights exactly as they are.

Source: arXiv 2510.13003. A fresh adapter per task, with the earlier ones merged into the backbone. Before each task,
the weight of every adapted layer, earlier updates included, is decomposed: W = U·S·Vᵀ. With the first k columns of U
and V,

    ΔW = s·(I - U_k·U_kᵀ)·B·A·(I - V_k·V_kᵀ)

so U_kᵀ·ΔW = 0 and ΔW·V_k = 0: the first k singular triples of W are singular triples of W + ΔW as well. What earlier
tasks have learned is kept as far as it lies in them.

The update is a stock adapter. A starts projected, and the rows of A and the columns of B are projected after each
optimizer step. So are their gradients, before they are clipped. Up to rounding, this is AdamW on unprojected factors in
the formula above, where the part that is projected away has no effect and no gradient.

Departures: the paper trains one task; that W is decomposed anew before each task is a choice. k is an option here, and
its default is not the paper's, whose values were not checked.

Pitfalls:
- The decomposition takes one SVD for each module and task: on one core about 0.15 s for 576 x 576 and 2.6 s for
  1536 x 1536 in float32, and time grows with the third power.
- U_k and V_k take 4·k·(in + out) bytes for each module.
- Kept triples need not stay the leading ones: a large update may bring larger ones of its own.
- An update whose rank is near the number of directions that are left is cut down by the projection.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from pydantic import Field

from nlora.errors import Problem
from nlora.methods.base import Method, MethodOptions

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

    from nlora.config.schema import LoraOptions
    from nlora.models.lora_adapter import ModuleShape
    from nlora.models.trainable import Trainable


class OploraOptions(MethodOptions):
    """How many of each weight's singular directions are left alone."""

    k: int | None = Field(
        None,
        ge=0,
        description="Number of leading singular directions of each weight that updates leave alone; 0: none, exactly "
        "incremental LoRA; null: `share` of them.",
    )
    share: float = Field(
        0.25,
        gt=0,
        lt=1,
        allow_inf_nan=False,
        description="The same as a share of the narrower side of each layer, rounded down; without effect if k is set.",
    )


class Oplora(Method[OploraOptions]):
    """Projects the factors off the leading singular directions of the weights."""

    needs_float_weights = True

    def __init__(self, options: OploraOptions) -> None:
        super().__init__(options)
        self._leading: dict[str, tuple[Tensor, Tensor]] = {}  # by module: U_k (out, k) and V_k (in, k)

    def check(self, modules: Sequence[ModuleShape]) -> list[Problem]:
        narrow = min(modules, key=lambda m: min(m.in_features, m.out_features), default=None)
        if narrow is None or self._k(narrow.in_features, narrow.out_features) < (
            width := min(narrow.in_features, narrow.out_features)
        ):
            return []
        what = (
            f"{narrow.name} has {width} singular directions, and k {self.options.k} leaves none to learn in"
        )
        return [Problem.at(("method", "k"), f"{what}; use at most {width - 1}")]

    def held_bytes(self, modules: Sequence[ModuleShape], earlier: int, device: str) -> int:
        ks = [self._k(m.in_features, m.out_features) for m in modules]
        return 4 * sum(k * (m.in_features + m.out_features) for k, m in zip(ks, modules, strict=True))

    def attach(self, model: nn.Module, lora: LoraOptions, *, stage: int, seed: int) -> Trainable:
        from nlora.models.lora_adapter import target_modules
        from nlora.models.unmerged_updates import effective_weight

        self.release()
        for module in target_modules(model, lora):
            if k := self._k(module.in_features, module.out_features):
                self._leading[module.name] = _leading_directions(effective_weight(model, module.name), k)
        adapter = super().attach(model, lora, stage=stage, seed=seed)
        for name, f in adapter.factors().items():
            if name in self._leading:
                U, V = self._leading[name]
                f.A.register_hook(partial(_rows_off, V))  # type: ignore[no-untyped-call]
                f.B.register_hook(partial(_columns_off, U))  # type: ignore[no-untyped-call]
        self._project(adapter)
        return adapter

    def release(self) -> None:
        self._leading = {}

    def after_step(
        self, adapter: Trainable, *, step: int, steps: int, learning_rate: float, optimizer: Optimizer
    ) -> None:
        self._project(adapter)

    def _project(self, adapter: Trainable) -> None:
        import torch

        with torch.no_grad():
            for name, f in adapter.factors().items():
                if name in self._leading:
                    U, V = self._leading[name]
                    f.A.copy_(_rows_off(V, f.A))
                    f.B.copy_(_columns_off(U, f.B))

    def _k(self, in_features: int, out_features: int) -> int:
        """How many directions of such a layer are left alone."""
        width = min(in_features, out_features)
        return int(self.options.share * width) if self.options.k is None else self.options.k


def _leading_directions(weight: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The first k left and right singular vectors of a weight (out, in): (out, k) and (in, k)."""
    import torch

    # Not svd_lowrank, which is faster for a small k but approximate.
    U, _, Vh = torch.linalg.svd(weight, full_matrices=False)
    return U[:, :k].contiguous(), Vh[:k].mT.contiguous()


def _rows_off(V: Tensor, matrix: Tensor) -> Tensor:
    """Rows without what they have along orthonormal columns: M - M·V·Vᵀ. V: (n, k); matrix: (m, n)."""
    return matrix - (matrix @ V) @ V.mT


def _columns_off(U: Tensor, matrix: Tensor) -> Tensor:
    """Columns without what they have along orthonormal columns: M - U·Uᵀ·M. U: (n, k); matrix: (n, m)."""
    return matrix - U @ (U.mT @ matrix)
