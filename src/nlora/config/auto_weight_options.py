"""How `method.weight: auto` searches."""

from __future__ import annotations

from pydantic import Field

from nlora.config.frozen import Frozen


class AutoWeightOptions(Frozen):
    """How `method.weight: auto` chooses a weight for each task."""

    margin: float = Field(
        1.0,
        ge=0,
        allow_inf_nan=False,
        description="With method.weight: auto, how much worse than without a penalty the new task's held-out examples "
        "(with replay, those of the memory as well) may be answered, in standard errors of their score.",
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
