"""What training a task cost and brought. Imports no torch: a run's folder is read without it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TrainResult:
    """The cost and the outcome of training one task.

    examples: of an epoch, repeated ones included.
    loss: the training loss, penalty included (as the released code logs it), averaged over the optimizer steps.
    penalty: the same average of the penalty alone; 0.0 for a method without one.
    padding_share: share of the computed positions that were padding.
    loss_before, loss_after: the loss on the first training examples, without penalty and dropout, before and after the
        training; None if unknown.
    best_epoch, best_score: the epoch that was kept, from 1, and its score in percent; None without early stopping.
    prepare_seconds: what the caller needed before and after it.
    peak_memory_bytes: of the GPU; on a CPU, the largest resident size of this process so far.
    """

    steps: int
    examples: int
    epochs: float
    seconds: float
    loss: float
    penalty: float
    padding_share: float
    peak_memory_bytes: int
    trained_parameters: int
    best_epoch: int | None = None
    best_score: float | None = None
    loss_before: float | None = None
    loss_after: float | None = None
    prepare_seconds: float = 0.0

    @property
    def samples_per_second(self) -> float:
        """Training examples per second, every epoch counted."""
        return self.examples * self.epochs / self.seconds if self.seconds else 0.0


NOTHING_TRAINED = TrainResult(
    steps=0,
    examples=0,
    epochs=0.0,
    seconds=0.0,
    loss=0.0,
    penalty=0.0,
    padding_share=0.0,
    peak_memory_bytes=0,
    trained_parameters=0,
)
"""Of an adapter from elsewhere."""
