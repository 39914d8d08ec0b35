"""The keys of `train`: how one task is trained."""

from __future__ import annotations

import math
import re
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from nlora.config.frozen import Frozen
from nlora.config.yaml_positions import by_label

_TIME = re.compile(r"(\d+(?:\.\d+)?)([smh])")
_SECONDS = {"s": 1, "m": 60, "h": 3600}


class EarlyStopping(Frozen):
    """When the training of one task ends before its last epoch."""

    patience: int = Field(ge=1, description="Stop after this many epochs in a row without a better score.")


class TrainOptions(Frozen):
    """How one task is trained."""

    epochs: float = Field(1, gt=0, description="Passes over the task's training examples.")
    batch_size: int = Field(32, ge=1, description="Examples per optimizer step, over all processes.")
    micro_batch_size: int | None = Field(
        None,
        ge=1,
        description="Examples per forward pass on one device; null: what batch_size leaves per process.",
    )
    learning_rate: float = Field(1e-3, gt=0, description="AdamW's learning rate; with a schedule, its peak.")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant",
        description="The learning rate after the warm-up: constant; linear or cosine, down to 0 at the end of each "
        "task.",
    )
    weight_decay: float = Field(0.0, ge=0, description="AdamW's weight decay; not of biases and norms.")
    warmup_steps: int = Field(0, ge=0, description="Optimizer steps of linear warm-up.")
    warmup_ratio: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Linear warm-up as a share of each task's optimizer steps, rounded up; none for a single step. "
        "Instead of warmup_steps.",
    )
    max_grad_norm: float = Field(
        1.0, ge=0, description="Clip the gradient (penalty included) to this norm; 0: never."
    )
    max_source_tokens: int = Field(
        512, ge=8, description="Longest prompt, in tokens; fewer if the model has fewer positions."
    )
    max_target_tokens: int = Field(50, ge=1, description="Longest answer, in tokens, its end token included.")
    truncate: Literal["text", "released"] = Field(
        "text",
        description="How a prompt that is too long is cut: text shortens the text and keeps the instruction and "
        "'Answer:'; released cuts off the end, 'Answer:' included, as the released code does.",
    )
    early_stopping: EarlyStopping | None = Field(
        None,
        description="{patience: N}: after each epoch, score the task on evaluate.validation_share of its training "
        "examples, which are then not trained on; stop after N epochs in a row without a better score, and keep the "
        "best epoch's adapter; null: train every epoch and keep the last.",
    )
    label_weights: Literal["balanced"] | dict[str, float] | None = Field(
        None,
        description="How much an example counts in the loss, by its label. balanced: every label has the same total "
        "weight, however rare it is; {label: weight}: a label that is not named counts 1; null: all examples count "
        "the same.",
    )
    max_samples: int | None = Field(
        None, ge=1, description="Train on at most this many examples per task, a seeded sample; null: all."
    )
    batches: Literal["by_length", "random"] = Field(
        "by_length",
        description="Which examples form a batch: by_length, those of similar length, which needs the least padding; "
        "random, any.",
    )
    gradient_checkpointing: bool = Field(False, description="Save memory by computing activations twice.")
    logging_steps: int = Field(
        10,
        ge=1,
        description="Optimizer steps between lines of the training log and points of the report's chart; "
        "a task's first and last step are always logged.",
    )
    report_to: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = Field(
        (),
        description="Also log to these, each run under the name of its folder; TensorBoard's files are in its "
        "logs/tensorboard. A run that resumes goes on in the same tracked run. Each needs its package, such as "
        "pip install tensorboard.",
    )

    save_every: int | str | None = Field(
        "10m",
        description="How often the state of a half-trained task is saved, so that a run that is stopped or killed "
        "resumes there: a number of optimizer steps, or a time (90s, 10m, 1h). Saving takes at most a hundredth of the "
        "time if this is a time. null: never; the task then starts anew.",
    )

    @property
    def save_seconds(self) -> float | None:
        """`save_every` in seconds; None if it is not a time.

        >>> TrainOptions(save_every="10m").save_seconds
        600.0
        """
        return _seconds(self.save_every) if isinstance(self.save_every, str) else None

    def steps(self, examples: int) -> int:
        """Optimizer steps of one task: batches per epoch (the last one may be smaller) times epochs, rounded up.

        >>> TrainOptions(epochs=1.5, batch_size=32).steps(100)
        6
        """
        return math.ceil(self.epochs * math.ceil(examples / self.batch_size))

    def micro_batch(self, processes: int) -> int:
        """The examples that each of several processes trains on at once.

        >>> TrainOptions(batch_size=32, micro_batch_size=16).micro_batch(8)
        4
        """
        share = math.ceil(self.batch_size / processes)
        return min(self.micro_batch_size or share, share)

    def warmup(self, examples: int) -> int:
        """Optimizer steps of one task's warm-up.

        >>> TrainOptions(epochs=1.5, batch_size=32, warmup_ratio=0.2).warmup(100)
        2
        """
        steps = self.steps(examples)
        # The first step of a warm-up has a rate of 0, so a task of a single step would learn nothing.
        return self.warmup_steps or (math.ceil(self.warmup_ratio * steps) if steps > 1 else 0)

    @field_validator("save_every", mode="before")
    @classmethod
    def _steps_or_time(cls, value: Any) -> Any:
        """In one message what pydantic would say of each member of the union."""
        is_steps = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        if not (value is None or is_steps or (isinstance(value, str) and _seconds(value))):
            raise ValueError(
                f"must be a number of optimizer steps, a time such as 90s, 10m or 1h, or null, not {value!r}"
            )
        return value

    @field_validator("label_weights", mode="before")
    @classmethod
    def _weights_of_labels(cls, weights: Any) -> Any:
        """In one message what pydantic would say of each member of the union."""
        if weights is None or weights == "balanced":
            return weights
        if not isinstance(weights, dict) or not weights:
            raise ValueError(f"must be balanced, a mapping of labels to weights, or null, not {weights!r}")
        for label, weight in weights.items():
            is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
            # float32 holds these, and their products with a loss.
            if not is_number or not 1e-30 <= weight <= 1e30:
                what = f"the weight of '{label}' must be a number > 0 (1e-30 to 1e30), not {weight!r}"
                raise ValueError(what)
        return by_label(weights)

    @model_validator(mode="after")
    def _one_warmup(self) -> TrainOptions:
        if self.warmup_steps and self.warmup_ratio:
            raise ValueError(
                f"warmup_steps {self.warmup_steps} and warmup_ratio {self.warmup_ratio:g} exclude each other; "
                "set one of them to 0"
            )
        return self

    @model_validator(mode="after")
    def _micro_batch_divides(self) -> TrainOptions:
        if self.micro_batch_size is not None and self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of micro_batch_size {self.micro_batch_size}"
            )
        return self


def _seconds(time: str) -> float:
    """The seconds of a time such as 90s, 10m or 1h; 0.0 if it is none."""
    found = _TIME.fullmatch(time)
    return float(found[1]) * _SECONDS[found[2]] if found else 0.0
