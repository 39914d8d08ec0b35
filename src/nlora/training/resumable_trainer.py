"""A Trainer that saves the state of a half-trained task, and continues from it as if it had never stopped.

The Trainer has a checkpoint of its own, which is not used, for three reasons. Its files are pickles. Its sums of the
loss start again at 0 when it resumes. It also saves before the end of an epoch is dealt with, so that `BestEpoch` would
miss that epoch. What is used is its place for saving, and that it skips what an epoch has trained on already without
collating it. The methods whose names begin with `_` here, except `_save_to`, are the Trainer's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import Trainer, TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME

from nlora.models import processes
from nlora.models.stopping import stop_together
from nlora.training.peak_memory import peak_memory_bytes
from nlora.training.random_state import random_state, set_random_state
from nlora.training.state_file import read_state, write_state


class ResumePoints(Protocol):
    """Where the states of a half-trained task are kept, and when (`nlora.runs.resume_points`)."""

    @property
    def latest(self) -> Path | None:
        """The folder to resume from; None: the task starts anew."""

    @property
    def is_stopping(self) -> bool:
        """Whether to stop after the step for which `is_due` was asked."""

    def is_due(self, step: int) -> bool:
        """Whether to save after this optimizer step. The same in all processes."""

    def write(self, step: int, fill: Callable[[Path], None]) -> None:
        """Keep what `fill` writes into the folder that it is given."""


class Stateful(Protocol):
    """What has a state of its own that changes while a task is trained, as torch's optimizers have."""

    def state_dict(self) -> Mapping[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class LiveTensors:
    """Tensors that are trained in place, as a `Stateful`."""

    def __init__(self, tensors: Callable[[], Mapping[str, Tensor]]) -> None:
        self._tensors = tensors

    def state_dict(self) -> dict[str, Any]:
        """The tensors themselves, by name."""
        return dict(self._tensors())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Overwrite the tensors in place."""
        with torch.no_grad():
            for name, tensor in self._tensors().items():
                tensor.copy_(state[name])


class ResumableTrainer(Trainer):
    """Saves and restores everything that decides the rest of a training.

    points: where to save, and where to resume; None: neither. parts: what changes in a training besides the Trainer
    itself, its optimizer, its schedule and the random generators.
    """

    def __init__(
        self,
        *args: Any,
        points: ResumePoints | None = None,
        parts: Mapping[str, Stateful] | None = None,
        **kwargs: Any,
    ) -> None:
        self.optimizer: Any  # there is one from before the first step
        self.lr_scheduler: Any
        super().__init__(*args, **kwargs)
        self._points, self._parts = points, dict(parts or {})
        self._resumed: dict[str, Any] = {}
        self._begin, self._seconds_before, self._peak_before = 0.0, 0.0, 0
        if points is not None:
            self.add_callback(_Saving(self, points))  # after the others: they may end the training

    def learn(self) -> float:
        """Train to the end, from where it was left if there is a resume point. Returns the mean training loss."""
        self._begin = time.perf_counter()
        latest = None if self._points is None else self._points.latest
        output = self.train(resume_from_checkpoint=None if latest is None else str(latest))
        return float(output.training_loss)

    @property
    def seconds(self) -> float:
        """The time that the training took so far, that of earlier processes included."""
        return self._seconds_before + time.perf_counter() - self._begin

    @property
    def peak_memory_bytes(self) -> int:
        """The peak of the process that needed most."""
        return max(self._peak_before, peak_memory_bytes())

    # Sums over the steps so far, one for each process

    def sums(self) -> dict[str, Any]:
        """What this process has added up since the first step of the task."""
        return {
            "loss_logged": self._total_loss_scalar,
            "loss_not_logged": self._tr_loss,
            "last_logged": self._globalstep_last_logged,
            "seconds": self.seconds,
            "peak_memory_bytes": self.peak_memory_bytes,
        }

    def set_sums(self, sums: dict[str, Any]) -> None:
        """Continue with these sums."""
        self._total_loss_scalar = sums["loss_logged"]
        self._tr_loss += sums["loss_not_logged"].to(self._tr_loss.device)
        self._globalstep_last_logged = sums["last_logged"]
        self._initial_global_step = 0  # the mean loss is over all steps of the task
        self._seconds_before, self._peak_before = sums["seconds"], sums["peak_memory_bytes"]

    def mean_sums(self, sums: list[dict[str, Any]]) -> dict[str, Any]:
        """What each process continues with if their number has changed: what is averaged over them stays the same."""
        keys = ("loss_logged", "loss_not_logged")
        return sums[0] | {key: sum(one[key] for one in sums) / len(sums) for key in keys}

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log the seconds of the whole training, although the Trainer knows only those of this process."""
        if self._seconds_before and (seconds := logs.get("train_runtime")):
            logs["train_runtime"] = seconds + self._seconds_before
            for rate in ("train_samples_per_second", "train_steps_per_second"):
                logs[rate] *= seconds / logs["train_runtime"]
        super().log(logs, *args, **kwargs)

    # Saving

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self.store_flos()  # part of the Trainer's state
        state = {
            **{name: part.state_dict() for name, part in self._parts.items()},
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.lr_scheduler.state_dict(),
            "processes": processes.gather({"random": random_state(), "sums": self.sums()}),
        }
        if self._points is not None and processes.is_main():
            self._points.write(self.state.global_step, lambda folder: self._save_to(folder, state))

    def _save_to(self, folder: Path, state: dict[str, Any]) -> None:
        self.state.save_to_json(str(folder / TRAINER_STATE_NAME))
        write_state(folder, state)

    # Resuming, in the order in which the Trainer calls these

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self._resumed = read_state(Path(resume_from_checkpoint))
        for name, part in self._parts.items():
            part.load_state_dict(self._resumed.pop(name))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if self._resumed:
            self.optimizer.load_state_dict(self._resumed.pop("optimizer"))
            self.lr_scheduler.load_state_dict(self._resumed.pop("schedule"))

    def resume_sums(self) -> None:
        """Restore the sums, which the Trainer resets when it starts, and what may change between two starts."""
        if self._resumed:
            self.state.compute_steps(self.args, self.state.max_steps)
            self.state.train_batch_size = self._train_batch_size
            sums = [process["sums"] for process in self._resumed["processes"]]
            alike = len(sums) == processes.size()
            self.set_sums(sums[processes.rank()] if alike else self.mean_sums(sums))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        # With another number of processes each draws its own numbers anyway.
        if self._resumed and len(states := self._resumed["processes"]) == processes.size():
            set_random_state(states[processes.rank()]["random"])


class _Saving(TrainerCallback):
    """Decides after each optimizer step whether to save, and ends a training that was asked to stop once it is saved.

    At the end of an epoch it waits for the other callbacks. After the last step there is nothing to resume.
    """

    def __init__(self, trainer: ResumableTrainer, points: ResumePoints) -> None:
        self._trainer, self._points = trainer, points

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._trainer.resume_sums()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not float(state.epoch).is_integer():
            self._decide(state, control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._decide(state, control)

    def _decide(self, state: Any, control: Any) -> None:
        if not control.should_training_stop:
            control.should_save = self._points.is_due(state.global_step)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._points.is_stopping:
            stop_together()
