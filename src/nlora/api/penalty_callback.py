"""The penalty in the steps of transformers' Trainer, and where its gradient cannot be added."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from accelerate.state import AcceleratorState, is_initialized
from transformers import TrainerCallback

from nlora.errors import ModelError


class PenaltyCallback(TrainerCallback):
    """Adds the penalty's gradient at the beginning of each optimizer step, where the micro-batches add theirs."""

    def __init__(self, backward: Callable[[], None]) -> None:
        self._backward = backward

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Raises ModelError if the Trainer scales or splits gradients, which the penalty's would not be."""
        refuse_scaled_gradients(args)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Gradients are zero now; the Trainer clips the sum."""
        self._backward()


def refuse_scaled_gradients(arguments: Any = None) -> None:
    """Raise ModelError if gradients are scaled or split. arguments: the Trainer's, if there is one."""
    # What `accelerate launch` sets is not in the arguments, but in the state that the Accelerator has made.
    launched = AcceleratorState() if is_initialized() else None
    kinds = (launched.mixed_precision, launched.distributed_type.value.lower()) if launched else ()
    for option in ("fp16", "deepspeed", "fsdp"):
        if (is_given := bool(getattr(arguments, option, None))) or option in kinds:
            hint = "use bf16" if option == "fp16" else "train on one device or with DDP"
            where = f"TrainingArguments({option}=...)" if is_given else f"accelerate launch ({option})"
            raise ModelError(f"{where}: the penalty cannot be added to such gradients; {hint}")
