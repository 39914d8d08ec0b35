"""TensorBoard, W&B and Trackio: one tracked run per run, with steps that continue from stage to stage.

The callbacks are transformers' own. By themselves they would start another tracked run for every stage and every time
that the run resumes, each from step 0.
"""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.integrations.integration_utils import (
    TensorBoardCallback,
    TrackioCallback,
    WandbCallback,
    get_reporting_integration_callbacks,
)

TENSORBOARD_FOLDER = Path("logs", "tensorboard")


def trackers(names: Sequence[str], run: Path, *, run_id: str, steps_before: int) -> list[TrainerCallback]:
    """The callbacks of one stage.

    names: as in `train.report_to`. run: the run's folder, which is also the tracked run's name.
    run_id: what tells this run from others in a folder of this name, and is the same whenever it resumes.
    steps_before: optimizer steps of all earlier stages.
    """
    made = [kind() for kind in get_reporting_integration_callbacks(list(names))]
    for callback in made:
        if isinstance(callback, TensorBoardCallback) and callback.logging_dir is None:
            callback.logging_dir = str(run / TENSORBOARD_FOLDER)
    return [_Continued(callback, str(run), run_id, steps_before) for callback in made]


@contextmanager
def one_wandb_run() -> Iterator[None]:
    """End the W&B run that was started in the block, so that this process's next run does not continue it."""
    before = _wandb_run()
    try:
        yield
    finally:
        if _wandb_run() is not before:
            sys.modules["wandb"].finish()


def _wandb_run() -> Any:
    """This process's W&B run; None if there is none."""
    return getattr(sys.modules.get("wandb"), "run", None)


def _resume_wandb(name: str, run_id: str) -> None:
    """Start the W&B run of this id, or resume it; the callback uses a run that has been started.

    Nothing if there is one already, or if the environment says which one it is to be.
    """
    import wandb

    if wandb.run is None and not os.environ.keys() & {"WANDB_RUN_ID", "WANDB_RESUME"}:
        project = os.environ.get("WANDB_PROJECT", "huggingface")  # as the callback chooses it
        wandb.init(project=project, name=name, id=run_id, resume="allow")


class _Continued(TrainerCallback):
    """Passes the Trainer's events on to a tracker, with the steps of all stages counted."""

    def __init__(self, tracker: TrainerCallback, name: str, run_id: str, steps_before: int) -> None:
        self._tracker, self._name, self._id, self._steps_before = tracker, name, run_id, steps_before

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        args.run_name = self._name
        if isinstance(self._tracker, WandbCallback) and state.is_world_process_zero:
            _resume_wandb(self._name, self._id)
        elif isinstance(self._tracker, TrackioCallback):
            args.run_name = f"{self._name} {self._id}"  # Trackio resumes by the name alone
            args.trackio_static_space_id = False  # else it would publish a frozen copy after every stage
        self._tracker.on_train_begin(args, self._counted(state), control, **kwargs)

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._tracker.on_log(args, self._counted(state), control, **kwargs)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._tracker.on_train_end(args, self._counted(state), control, **kwargs)

    def _counted(self, state: Any) -> Any:
        counted = copy.copy(state)
        counted.global_step += self._steps_before
        return counted
