"""CLoRA: a penalty keeps updates out of random directions, which are the same for all tasks.

Source: arXiv 2410.16801, and its released code. A fresh adapter per task, with the earlier ones merged into the
backbone. Added to the loss of an optimizer step, at the first task too:

    weight / 2 · Σ_modules (‖A·P_in‖²_F + ‖Bᵀ·P_out‖²_F)

P_in (in, k) and P_out (out, k) have orthonormal columns, drawn at random and never trained. Where the penalty is 0, the
update ignores what an input has along P_in, and adds nothing along P_out. k is `columns`, at most the layer's width.
The scaling is not part of the penalty, as in the released code.

Departures: the released code draws P from the global generator each time that a training starts. Here P depends on
`seed` and the module's name alone, so all tasks of a run leave the same directions out. That is a choice: the released
code trains one task, and what the paper did between tasks was not checked.

Pitfalls:
- A starts random, so the penalty is large at the first step (with the default weight, far above the loss), and gradient
  clipping includes it: the first clipped steps are mostly penalty.
- With k as large as a layer's width, P spans everything, and the penalty is plain weight decay of that layer's factors.
- P takes 4·k·(in + out) bytes for each module: with the default k, as much as a small model's layer.
- All tasks share the directions that are left, so nothing keeps their updates apart from each other.
- The default weight is that of the released code for large models trained on one task; it is not tuned here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from nlora.methods._devices import beside
from nlora.methods._seeds import drawn
from nlora.methods.base import Method, MethodOptions

if TYPE_CHECKING:
    from torch import Tensor

    from nlora.models.lora_adapter import AdapterState, ModuleShape
    from nlora.models.trainable import Trainable


class CloraOptions(MethodOptions):
    """How strongly updates are kept out of the random directions, and how many of these there are."""

    weight: float = Field(
        1.0,
        ge=0,
        allow_inf_nan=False,
        description="λ, the weight of the penalty; 0: exactly incremental LoRA. The default is the released one, not "
        "tuned for sequences of tasks.",
    )
    columns: int = Field(
        512,
        ge=1,
        description="k, the number of directions of each side of a layer that updates are kept out of; at most the "
        "layer's width.",
    )
    seed: int = Field(0, description="Seed of the directions, which also depend on the module's name.")


class Clora(Method[CloraOptions]):
    """Penalizes what the factors have along fixed random directions."""

    def __init__(self, options: CloraOptions) -> None:
        super().__init__(options)
        # The transposes of P_in and P_out, by `in/<module>` and `out/<module>`
        self._directions: dict[str, Tensor] = {}

    def held_bytes(self, modules: Sequence[ModuleShape], earlier: int, device: str) -> int:
        widths = [width for m in modules for width in (m.in_features, m.out_features)]
        return 4 * sum(min(self.options.columns, n) * n for n in widths) if self.options.weight else 0

    def begin_task(self, adapter: Trainable, earlier: Sequence[AdapterState]) -> None:
        self.release()
        if self.options.weight == 0:
            return
        for name, f in adapter.factors().items():
            for key, width in ((f"in/{name}", f.A.shape[1]), (f"out/{name}", f.B.shape[0])):
                self._directions[key] = self._drawn(key, width).to(f.A.device)

    def release(self) -> None:
        self._directions = {}

    def penalty(self, adapter: Trainable) -> Tensor | None:
        if not self._directions:
            return None
        import torch

        from nlora.kernels.orthogonal import row_overlap_l2_squared

        terms = []
        for name, f in adapter.factors().items():
            P_in, P_out = (beside(self._directions, f"{side}/{name}", f.A) for side in ("in", "out"))
            terms += [row_overlap_l2_squared(P_in, f.A), row_overlap_l2_squared(P_out, f.B.mT)]
        device = terms[0].device  # a model may be spread over several
        return self.options.weight / 2 * torch.stack([term.to(device) for term in terms]).sum()

    def _drawn(self, what: str, width: int) -> Tensor:
        """Orthonormal rows: (k, width), the transpose of P."""
        import torch

        generator = torch.Generator().manual_seed(drawn(f"{self.options.seed}/{what}") % 2**63)
        rows = torch.empty(min(self.options.columns, width), width)
        return torch.nn.init.orthogonal_(rows, generator=generator)
