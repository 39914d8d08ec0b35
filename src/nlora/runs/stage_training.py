"""The training of one stage: what the method trains is attached to the backbone, trained, and taken off again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from nlora.data.columns import TokenizedExamples
from nlora.data.task import Task
from nlora.errors import RunError
from nlora.evaluation.choices import Metric
from nlora.evaluation.evaluator import Evaluator
from nlora.models.backbone import Backbone
from nlora.models.fast_paths import FastPaths
from nlora.models.lora_factors import with_all_modules
from nlora.models.processes import from_main
from nlora.models.trainable import Trainable
from nlora.runs.events import Progress
from nlora.runs.plan import Plan
from nlora.runs.resume_points import StageResumePoints
from nlora.runs.stage_notes import not_finite_in_words
from nlora.runs.stage_results import score
from nlora.runs.tracker_id import tracker_id
from nlora.runs.update_history import UpdateHistory
from nlora.training.finite_guard import NotFiniteError
from nlora.training.result import TrainResult
from nlora.training.trackers import trackers
from nlora.training.trainer import train

if TYPE_CHECKING:
    from transformers import TrainerCallback


def new_examples(plan: Plan, stage: int) -> TokenizedExamples:
    """What a stage trains on, without what `replay` keeps of earlier tasks: a method remembers those already."""
    given = plan.examples[stage - 1]
    return given.own if plan.config.replay.is_on else given.tokens


@contextmanager
def attached(plan: Plan, backbone: Backbone, history: UpdateHistory, stage: int) -> Iterator[Trainable]:
    """A block in which what a stage trains is attached to the backbone, prepared by the method.

    Raises RunError for a training that is not finite.
    """
    method = plan.methods[stage - 1]
    history.activate_for_training(method)
    model: Any = backbone.model
    names, pad_id = [module.name for module in plan.modules], backbone.tokenizer.pad_token_id
    method.see_examples(model, names, new_examples(plan, stage), pad_id)
    trainable = method.attach(model, plan.config.lora, stage=stage, seed=stage_seed(plan.config.seed, stage))
    try:
        if stage > 1:
            method.restore(history.memory)
        factors = trainable.factors()
        method.begin_task(trainable, [with_all_modules(update, factors) for update in history.updates])
        yield trainable
    except NotFiniteError as error:
        raise RunError(not_finite_in_words(error, plan, stage)) from error
    finally:
        method.release()
        trainable.detach()


def train_stage(
    plan: Plan,
    backbone: Backbone,
    trainable: Trainable,
    stage: int,
    metric: Metric,
    folder: Path,
    progress: Progress,
    paths: FastPaths | None,
    points: StageResumePoints | None,
    *,
    is_tracked: bool = True,
) -> TrainResult:
    """Train what is attached, and rescale it as the method wants it.

    metric: by which early stopping compares epochs. folder: where trainer_state.json is written. is_tracked: whether
    the trackers of `train.report_to` log it.
    """
    config, task, method = plan.config, plan.tasks[stage - 1], plan.methods[stage - 1]
    options = config.train_options(task.name)
    steps, resumed = plan.stages[stage - 1].steps, 0
    if points is not None and points.position is not None:
        resumed = points.position.step
        progress.say(f"stage {stage}: {task.name} resumes after step {resumed} of {steps}")
    steps_before = sum(earlier.steps for earlier in plan.stages[: stage - 1])
    told = options.report_to if is_tracked else ()
    result = train(
        backbone,
        trainable,
        plan.encoded[stage - 1],
        options,
        penalty=lambda: method.penalty(trainable),
        penalty_use=method.penalty_use,
        extra_loss=method.extra_loss,
        after_step=partial(method.after_step, trainable),
        may_end=method.may_end,
        seed=stage_seed(config.seed, stage),
        folder=folder,
        weights=plan.weights[stage - 1],
        mix=plan.examples[stage - 1].mix,
        paths=paths,
        on_step=progress.training(stage, task.name, steps, resumed),
        score=held_out_score(plan, backbone, replace(task, test=task.validation), metric, paths),
        callbacks=_trackers(told, Path(config.output_dir), steps_before),
        points=points,
        stateful={"method": method},
    )
    if method.rescale != 1:  # a resume point holds what was trained, so nothing is rescaled twice
        with torch.no_grad():
            for f in trainable.factors().values():
                f.B.mul_(method.rescale)
    return result


def held_out_score(
    plan: Plan, backbone: Backbone, task: Task, metric: Metric, paths: FastPaths | None
) -> Callable[[], float]:
    """A function that scores the model in training, in percent, on the task's test examples, held out from its own.

    metric: that of the run's record of the task.
    """
    evaluator = Evaluator(backbone, plan.encoder, plan.config.evaluate, paths)
    return lambda: score(task, evaluator.answer(task), metric)


def _trackers(names: Sequence[str], run: Path, steps_before: int) -> list[TrainerCallback]:
    """The callbacks of `train.report_to`. steps_before: of all earlier stages."""
    return trackers(names, run, run_id=from_main(tracker_id, run), steps_before=steps_before) if names else []


def stage_seed(seed: int, stage: int) -> int:
    """The seed of one stage. It depends on these two numbers only, so a resumed run draws the same random numbers.

    The released code starts every stage with the same seed, so that all its adapters begin with the same A.
    """
    digest = hashlib.sha256(f"{seed}/{stage}".encode()).digest()
    return int.from_bytes(digest[:4], "big")
