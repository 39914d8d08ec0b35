"""N-LoRA: an L1 penalty keeps each task's update sparse, so that updates of different tasks rarely collide.

Source: arXiv 2410.10179. A fresh adapter per task, with the earlier ones merged into the backbone. Added to the loss
of an optimizer step:

    update_l1:  weight · Σ_modules Σ|s·B·A|      as the paper writes it, for any in and out
    factor_l1:  weight · Σ_modules Σ|A·B|        as the released code computes it: r x r, unscaled, in = out
    update_l2:  weight · Σ_modules ‖s·B·A‖²_F    a control, which neither has

These are different penalties. The weights of the released orders (such as 0.4) belong to `factor_l1`, which does not
by itself make B·A sparse. The paper's claims are about `update_l1`, which makes an update sparse and small at once.
`update_l2` makes it small and not sparse: its pull on an entry is proportional to the entry, so it drives none to zero.
What `update_l1` does beyond `update_l2`, with weights that leave updates of the same norm, is not due to smallness.

Departures from the released code: earlier updates are merged into the frozen weight instead of being kept as adapters
of growing rank; the penalty's weight does not depend on gradient accumulation.

Pitfalls:
- The sums run over all entries, so a weight does not carry over to a model of another size; reduction: mean
  makes it comparable.
- A weight need not carry over to another length of training. The default was level with no penalty after five epochs
  of 96 examples, and 8 points below it after 15 (docs/claim.md).
- Gradient clipping includes the penalty: with a large weight, most of the clipped step is penalty (`clipped: false`
  keeps them apart). Setting every update to zero minimizes the penalty, but learns nothing.
- AdamW normalizes the gradient of loss and penalty together. `apply: decoupled` moves the factors by the learning rate
  times the penalty's own gradient, which is mostly much smaller: it needs another weight, and none is tuned yet.
- A fresh adapter has B = 0, so the penalty and its gradient are zero at the first step.
- The default weight of `update_l2` does not give the norms that `update_l1` gives. Compare `frobenius` in
  analysis.json, and adjust the weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from nlora.config.penalty_use import PenaltyUse, Route
from nlora.errors import Problem
from nlora.methods.base import Method, MethodOptions

if TYPE_CHECKING:
    from torch import Tensor

    from nlora.models.lora_adapter import ModuleShape
    from nlora.models.trainable import Trainable

# By penalty and reduction. factor_l1: the released orders 1 to 3. update_l1: measured on the built-in tasks
# (docs/weight.md), 60 modules with 13.3 million entries, where the weight of the mean has the same effect. update_l2:
# not tuned. For unpenalized updates on the same modules (‖ΔW‖_F of 6 to 13), 0.007 to 0.011 would make the penalty as
# large as that of update_l1, 0.4 to 1.2.
DEFAULT_WEIGHTS = {
    ("update_l1", "sum"): 3e-5,
    ("update_l1", "mean"): 400.0,
    ("factor_l1", "sum"): 0.4,
    ("update_l2", "sum"): 0.01,
    ("update_l2", "mean"): 1.3e5,
}


class NloraOptions(MethodOptions):
    """Which penalty, its weight, its reduction, and how a training applies it."""

    penalty: Literal["update_l1", "factor_l1", "update_l2"] = Field(
        "update_l1",
        description="update_l1: the L1 norm of the update s·B·A, as the paper writes it; factor_l1: that of the "
        "r x r matrix A·B, as the released code computes it (needs layers with in = out); update_l2: the squared "
        "Frobenius norm of s·B·A, a control that shrinks an update without making it sparse.",
    )
    weight: float | None = Field(
        None,
        ge=0,
        allow_inf_nan=False,
        description="λ, the penalty's weight; 0: exactly incremental LoRA; null: "
        + ", ".join(f"{value:g} for {p} ({r})" for (p, r), value in DEFAULT_WEIGHTS.items())
        + ". Those of update_l2 are not tuned.",
    )
    reduction: Literal["sum", "mean"] = Field(
        "sum",
        description="Over the entries of all modules' updates: sum, as in the paper and the released code; "
        "mean, for weights that carry over between models of different sizes (not for factor_l1).",
    )

    apply: Literal["loss", "decoupled"] = Field(
        "loss",
        description="loss: the penalty is added to the loss, as in the released code; decoupled: its gradient bypasses "
        "AdamW, as weight decay does, and each step moves the factors by -learning_rate · gradient.",
    )
    clipped: bool = Field(
        True,
        description="With apply: loss, whether train.max_grad_norm limits the gradient of loss and penalty together, "
        "as in the released code; false: it limits the loss's alone, and the penalty's is added afterwards.",
    )
    growth: float = Field(
        0.0,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="Share of a task's steps over which the weight grows linearly from 0; 0: constant, as in the "
        "released code.",
    )

    @model_validator(mode="after")
    def _released_formula_is_a_sum(self) -> NloraOptions:
        if (self.penalty, self.reduction) not in DEFAULT_WEIGHTS:
            raise ValueError(
                "penalty factor_l1 is the released formula, a sum; reduction mean needs update_l1 or update_l2"
            )
        return self


class Nlora(Method[NloraOptions]):
    """N-LoRA, in the paper's form or in the released code's, and its control. weight: the λ used."""

    def __init__(self, options: NloraOptions) -> None:
        super().__init__(options)
        default = DEFAULT_WEIGHTS[options.penalty, options.reduction]
        self.weight: float = default if options.weight is None else options.weight
        route: Route = (
            "decoupled" if options.apply == "decoupled" else "loss" if options.clipped else "unclipped"
        )
        self.penalty_use = PenaltyUse(route, options.growth)

    def check(self, modules: Sequence[ModuleShape]) -> list[Problem]:
        if self.options.penalty != "factor_l1":
            return []
        alike: dict[
            tuple[str, int, int], list[str]
        ] = {}  # one problem for all layers like v_proj, 576 to 192
        for m in modules:
            if m.in_features != m.out_features:
                part = m.name.rpartition(".")[2]
                alike.setdefault((part, m.in_features, m.out_features), []).append(m.name)
        return [
            Problem.at(
                ("method", "penalty"),
                f"factor_l1 needs layers with in = out, but {names[0]} maps {n_in} to {n_out}"
                + (f" (and {len(names) - 1} more like it)" if len(names) > 1 else "")
                + "; use update_l1, which is defined for any layer, or leave the layer out of lora.targets",
            )
            for (_, n_in, n_out), names in alike.items()
        ]

    def penalty(self, adapter: Trainable) -> Tensor | None:
        if self.weight == 0:
            return None
        import torch  # late, so that listing and checking methods is quick

        from nlora.kernels.l1 import factor_l1, update_l1_sum
        from nlora.kernels.l2 import update_l2_squared_sum

        factors = list(adapter.factors().values())
        if self.options.penalty == "factor_l1":
            terms = [factor_l1(f.A, f.B) for f in factors]
            device = terms[0].device  # a model may be spread over several
            total = torch.stack([term.to(device) for term in terms]).sum()
        else:
            total_of = update_l1_sum if self.options.penalty == "update_l1" else update_l2_squared_sum
            total = total_of([f.A for f in factors], [f.B for f in factors], [f.scaling for f in factors])
        entries = sum(f.entries for f in factors) if self.options.reduction == "mean" else 1
        return self.weight / entries * total
