"""Keeps the adapter of the epoch with the best score, and stops when later epochs do not improve on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from nlora.models.lora_factors import LoraFactors

if TYPE_CHECKING:
    from nlora.models.lora_factors import AdapterState
    from nlora.models.trainable import Trainable


class BestEpoch(TrainerCallback):
    """Scores the adapter at the end of each epoch; `restore` puts the best epoch's back.

    score: of the adapter as it is, in percent.
    patience: stop after this many epochs in a row without a better score. Of equal scores, the first is the best.
    may_end: called with the step and the number of all steps; an epoch for which it is false is scored, but does not
        compete.
    """

    def __init__(
        self,
        trainable: Trainable,
        score: Callable[[], float],
        patience: int,
        may_end: Callable[[int, int], bool] = lambda step, steps: True,
    ) -> None:
        self._trainable, self._score, self._patience, self._may_end = trainable, score, patience, may_end
        self._state: AdapterState = {}
        self.scores: list[float] = []  # of the epochs so far
        self.epoch, self.best = 0, 0.0  # the best one, from 1, and its score

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.scores.append(self._score())
        if not self._may_end(state.global_step, state.max_steps):
            return
        if not self.epoch or self.scores[-1] > self.best:
            self.epoch, self.best, self._state = len(self.scores), self.scores[-1], self._trainable.state()
        elif len(self.scores) - self.epoch >= self._patience:
            control.should_training_stop = True
            logged = state.log_history[-1]["step"] if state.log_history else 0
            control.should_log = state.global_step > logged  # always log the last step

    def state_dict(self) -> dict[str, Any]:
        """The scores so far, and the best epoch's adapter."""
        adapter = {name: {"A": f.A, "B": f.B, "scaling": f.scaling} for name, f in self._state.items()}
        return {"scores": self.scores, "epoch": self.epoch, "best": self.best, "adapter": adapter}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after these epochs."""
        self.scores, self.epoch, self.best = state["scores"], state["epoch"], state["best"]
        self._state = {name: LoraFactors(**factors) for name, factors in state["adapter"].items()}

    def restore(self) -> None:
        """Put the best epoch's adapter back."""
        self._trainable.load_state(self._state)
