"""How `method.weight: auto` searches."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from nlora.config.frozen import Frozen


class AutoWeightOptions(Frozen):
    """How `method.weight: auto` chooses a weight for each task."""

    by: Literal["probability", "score"] = Field(
        "probability",
        description="With method.weight: auto, what held-out examples are judged by: the probability of the right "
        "label, or the score of the answers. The probability is less a matter of chance, and also falls when a task is "
        "answered rightly by a smaller margin. Generated answers, and macro-F1, are always judged by their score.",
    )
    margin: float = Field(
        1.0,
        ge=0,
        allow_inf_nan=False,
        description="With method.weight: auto, how much worse than without a penalty the new task's held-out examples "
        "(with replay, those of the memory as well) may be answered, in standard errors of a share.",
    )
    max_drop: float = Field(
        2.0,
        ge=0,
        allow_inf_nan=False,
        description="The same in points of percent, and the smaller of the two counts: the standard error of a few "
        "held-out examples is so large that it would allow a weight that harms the task.",
    )
    tries: int = Field(
        4,
        ge=1,
        le=8,
        description="With method.weight: auto, how many weights are tried for each task, besides 0. Each is a training "
        "of the task on the examples that are not held out.",
    )

    def weights(self, default: float) -> list[float]:
        """The 2^tries - 1 weights among which `tries` find one by halving: half powers of ten around the default.

        >>> [round(weight, 2) for weight in AutoWeightOptions(tries=2).weights(1.0)]
        [0.32, 1.0, 3.16]
        """
        middle = 2 ** (self.tries - 1) - 1
        return [default * 10 ** ((i - middle) / 2) for i in range(2**self.tries - 1)]
