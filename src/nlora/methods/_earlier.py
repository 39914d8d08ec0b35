"""A module's updates from all earlier stages, for methods that compare a new update with them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from nlora.errors import AdapterError

if TYPE_CHECKING:
    from nlora.models.lora_factors import AdapterState, LoraFactors


def updates_of(module: str, earlier: Sequence[AdapterState]) -> list[LoraFactors]:
    """The factors of `module` after each stage so far, in order.

    Raises AdapterError if a stage's adapter lacks the module, which would make the penalty weaker than it should be.
    """
    for stage, state in enumerate(earlier, start=1):
        if module not in state:
            raise AdapterError(
                f"the adapter of stage {stage} has no update for {module}, which this run trains; "
                "keep lora.targets the same for all tasks of a sequence"
            )
    return [state[module] for state in earlier]
