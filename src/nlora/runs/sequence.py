"""The loop: one model learns one task after another.

    for each task: train a fresh update on top of the backbone with all earlier updates merged
                   -> save the update as a stock PEFT adapter
                   -> score the model on every task seen so far
                   -> commit the stage, all of it or nothing

After stage k the model is W + Σ_{i<=k} ΔW_i, for every task and without a task id.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nlora.data.task import Task
from nlora.errors import RunError
from nlora.evaluation.choices import metric_of
from nlora.evaluation.evaluator import Answers, Evaluator
from nlora.models.adapter_source import copy_adapter
from nlora.models.backbone import Backbone
from nlora.models.fast_paths import FastPaths
from nlora.models.processes import from_main
from nlora.runs.events import Progress
from nlora.runs.folder import RunFolder
from nlora.runs.layout import ADAPTER
from nlora.runs.plan import Plan
from nlora.runs.repair import Repair
from nlora.runs.resumable import resumable
from nlora.runs.resume_points import StageResumePoints
from nlora.runs.stage_files import keep_trained, trained
from nlora.runs.stage_notes import answer_notes, not_finite_in_words, training_notes
from nlora.runs.stage_results import score, scores_of, task_records, write_skipped, write_stage
from nlora.runs.tracker_id import tracker_id
from nlora.runs.update_history import UpdateHistory
from nlora.training.finite_guard import NotFiniteError
from nlora.training.trackers import trackers
from nlora.training.trainer import TrainResult, train

if TYPE_CHECKING:
    from transformers import TrainerCallback

log = logging.getLogger("nlora")
_NOTHING_TRAINED = TrainResult(
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


def learn_sequence(
    plan: Plan,
    backbone: Backbone,
    run: RunFolder,
    progress: Progress,
    paths: FastPaths | None = None,
    *,
    repair: Repair | None = None,
) -> None:
    """Teach the backbone the plan's tasks in order.

    A stage that the folder already holds is not repeated, nor is the training of a stage whose scoring failed.
    paths: as found by `nlora.runs.preflight.preflight`. repair: of the folder, while learning.
    """
    tasks = plan.tasks
    records = task_records(run, tasks)
    history = UpdateHistory(
        backbone.model, [module.name for module in plan.modules], others=plan.adopted_modules
    )
    evaluator = Evaluator(backbone, plan.encoder, plan.config.evaluate, paths)
    done = len(run.committed_stages())
    known = run.zero_shot() or {}
    if plan.config.evaluate.zero_shot and (
        new := [task for task in tasks if task.test and task.name not in known]
    ):
        answers = _answer(plan, evaluator, history, new, 0, progress)
        run.write_zero_shot(known | scores_of(new, answers, records), records)
    for stage, (task, method) in enumerate(zip(tasks, plan.methods, strict=True), start=1):
        if repair is not None:
            repair.prepare(stage)
        if run.is_committed(stage):
            record = run.stage_record(stage)
            if record.is_skipped:
                history.skip()
            else:
                folder = run.stage_folder(stage)
                is_last = stage == done or repair is not None  # any next stage may be trained again
                history.reload_stage(folder, method, is_last=is_last, is_adopted=record.is_adopted)
            continue
        with run.stage(stage, task.name) as folder:
            adopted = plan.adopted.get(stage)
            if adopted is None and not plan.encoded[stage - 1]:  # the method trains nothing here
                history.skip()
                write_skipped(folder, tasks, stage)
            else:
                if adopted is not None:
                    from_main(copy_adapter, adopted.folder, folder / ADAPTER)
                    history.add(adopted.update)
                    result = _NOTHING_TRAINED
                elif kept := from_main(trained, folder):
                    log.info("stage %d: %s is trained already and only needs scoring", stage, task.name)
                    history.reload_stage(folder, method, is_last=True)
                    result = TrainResult(**kept)
                else:
                    with resumable(plan, run, stage, records, backbone.model, paths, progress.say) as points:
                        result = _train(plan, backbone, history, stage, folder, progress, paths, points)
                        keep_trained(folder, asdict(result), records[task.name], run.weights_before(stage))
                seen = tasks if plan.config.evaluate.unseen else tasks[:stage]
                answers = _answer(plan, evaluator, history, seen, stage, progress)
                notes = answer_notes(seen, answers)
                if adopted is None:
                    options = plan.config.train_options(task.name)
                    notes = [*training_notes(result, history.updates[-1], options), *notes]
                scores = write_stage(
                    folder,
                    tasks,
                    stage,
                    answers,
                    result,
                    records,
                    is_adopted=adopted is not None,
                    notes=notes,
                )
                progress.stage_done(stage, task.name, scores)
                _say(notes, stage, task.name, progress)
        if stage > 1:  # the new stage has a memory of its own
            run.drop_memory(stage - 1)
        run.write_summary()


def _say(notes: Sequence[str], stage: int, task: str, progress: Progress) -> None:
    for note in notes:
        log.warning("stage %d, %s: %s", stage, task, note)
        progress.say(f"stage {stage}, {task}: {note}")


def _train(
    plan: Plan,
    backbone: Backbone,
    history: UpdateHistory,
    stage: int,
    folder: Path,
    progress: Progress,
    paths: FastPaths | None,
    points: StageResumePoints | None,
) -> TrainResult:
    """Train one stage as the method wants it, and save what was trained."""
    config, task, method = plan.config, plan.tasks[stage - 1], plan.methods[stage - 1]
    options = config.train_options(task.name)
    steps_before = sum(earlier.steps for earlier in plan.stages[: stage - 1])
    examples = plan.encoded[stage - 1]
    seed = stage_seed(config.seed, stage)
    log.info("stage %d: %s, %d examples", stage, task.name, len(examples))
    steps, resumed = plan.stages[stage - 1].steps, 0
    if points is not None and points.position is not None:
        resumed = points.position.step
        progress.say(f"stage {stage}: {task.name} resumes after step {resumed} of {steps}")
    history.activate_for_training(method)
    model: Any = backbone.model
    trainable = method.attach(model, config.lora, stage=stage, seed=seed)
    try:
        if stage > 1:
            method.restore(history.memory)
        method.begin_task(trainable, history.updates)
        result = train(
            backbone,
            trainable,
            examples,
            options,
            penalty=lambda: method.penalty(trainable),
            extra_loss=method.extra_loss,
            seed=seed,
            folder=folder,
            weights=plan.weights[stage - 1],
            paths=paths,
            on_step=progress.training(stage, task.name, steps, resumed),
            score=_validation_score(plan, backbone, task, paths),
            callbacks=_trackers(options.report_to, Path(config.output_dir), steps_before),
            points=points,
            stateful={"method": method},
        )
        from_main(trainable.commit, folder, base_model=config.model, tokenizer=backbone.tokenizer)
        history.add(trainable.state())
    except NotFiniteError as error:
        raise RunError(not_finite_in_words(error, plan, stage)) from error
    finally:
        trainable.detach()
    history.activate_for_task(method, stage - 1)
    names = [module.name for module in plan.modules]
    history.save_memory(folder, method.end_task(model, names, examples, backbone.tokenizer.pad_token_id))
    return result


def _trackers(names: Sequence[str], run: Path, steps_before: int) -> list[TrainerCallback]:
    """The callbacks of `train.report_to`. steps_before: of all earlier stages."""
    return trackers(names, run, run_id=tracker_id(run), steps_before=steps_before) if names else []


def _validation_score(
    plan: Plan, backbone: Backbone, task: Task, paths: FastPaths | None
) -> Callable[[], float]:
    """A function that scores the model in training, in percent, on the examples held out from the task's own."""
    held_out = replace(task, test=task.validation)
    evaluator = Evaluator(backbone, plan.encoder, plan.config.evaluate, paths)
    return lambda: score(held_out, evaluator.answer(held_out), metric_of(task, plan.config))


def _answer(
    plan: Plan,
    evaluator: Evaluator,
    history: UpdateHistory,
    tasks: Sequence[Task],
    stage: int,
    progress: Progress,
) -> dict[str, Answers]:
    """The answers of the model after a stage to the test examples of some of the plan's tasks."""
    method = plan.methods[max(stage - 1, 0)]
    answers = {}
    for index, task in enumerate(tasks):
        if not task.test:  # of an adapter from elsewhere
            continue
        history.activate_for_task(method, index)
        on_answered = progress.scoring(stage, task.name, len(task.test))
        answers[task.name] = evaluator.answer(task, on_answered, beginning=partial(method.beginning, index))
        log.info("stage %d: %s answered in %.1f s", stage, task.name, answers[task.name].seconds)
    return answers


def stage_seed(seed: int, stage: int) -> int:
    """The seed of one stage. It depends on these two numbers only, so a resumed run draws the same random numbers.

    The released code starts every stage with the same seed, so that all its adapters begin with the same A.
    """
    digest = hashlib.sha256(f"{seed}/{stage}".encode()).digest()
    return int.from_bytes(digest[:4], "big")
