"""The heart: one model learns one task after another.

    for each task: train a fresh update over the backbone with all earlier updates folded in
                   -> keep the update as a stock PEFT adapter
                   -> score every task seen so far with what the model is now
                   -> commit the stage, whole or not at all

After stage k the model is W + Σ_{i<=k} ΔW_i, for every task and without a task id.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nlora.data.task import Task
from nlora.evaluation.evaluator import Answers, Evaluator
from nlora.runs.update_history import MEMORY_FILE, UpdateHistory
from nlora.models.backbone import Backbone
from nlora.models.paths import Paths
from nlora.runs.plan import Plan
from nlora.runs.progress import RunProgress
from nlora.runs.stage_results import facts_of_run, score_row, write_passed_over, write_stage
from nlora.runs.folder import RunFolder
from nlora.runs.stage_files import keep_trained, trained
from nlora.training.trackers import trackers
from nlora.training.trainer import TrainResult, train

log = logging.getLogger("nlora")


def learn_sequence(
    plan: Plan, backbone: Backbone, run: RunFolder, progress: RunProgress, paths: Paths | None = None
) -> None:
    """Teaches the backbone the plan's tasks in order; stages that the folder holds already are not repeated.

    Nor is the training of a stage whose scoring failed. paths: as `nlora.runs.tryout.try_out` found.
    """
    tasks = plan.tasks
    facts = facts_of_run(run, tasks)
    learned = UpdateHistory(backbone.model, [module.name for module in plan.modules])
    evaluator = Evaluator(backbone, plan.encoder, plan.config.evaluate, paths)
    done = len(run.committed_stages())
    if plan.config.evaluate.zero_shot and run.zero_shot() is None:
        answers = _answer(plan, evaluator, learned, tasks, 0, progress)
        run.write_zero_shot(score_row(tasks, answers, facts), facts)
    for stage, (task, method) in enumerate(zip(tasks, plan.methods, strict=True), start=1):
        if run.is_committed(stage):
            passed_over = run.stage_record(stage).is_passed_over
            learned.reload_stage(run.stage_folder(stage), method, passed_over=passed_over, last=stage == done)
            continue
        with run.stage(stage, task.name) as folder:
            if plan.encoded[stage - 1]:
                if kept := trained(folder):
                    log.info("stage %d: %s was trained before; only scored now", stage, task.name)
                    learned.reload_stage(folder, method, last=True)
                    result = TrainResult(**kept)
                else:
                    result = _learn(plan, backbone, learned, stage, folder, progress, paths)
                    keep_trained(folder, asdict(result), facts[task.name])
                seen = tasks if plan.config.evaluate.unseen else tasks[:stage]
                with _told_what_is_kept(progress, stage):
                    answers = _answer(plan, evaluator, learned, seen, stage, progress)
                    row = write_stage(folder, tasks, stage, answers, result, facts)
                progress.stage_done(stage, task.name, [t.name for t in tasks], row)
            else:  # the method trains nothing here
                learned.updates.append({})
                write_passed_over(folder, tasks, stage)
        if stage > 1:  # the new stage has its own
            (run.stage_folder(stage - 1) / MEMORY_FILE).unlink(missing_ok=True)
        run.write_summary()


@contextmanager
def _told_what_is_kept(progress: RunProgress, stage: int) -> Iterator[None]:
    """Says, where scoring does not come to its end, that the training is not lost."""
    try:
        yield
    except BaseException:
        progress.say(f"stage {stage} is trained and kept; the same command goes on with its scoring")
        raise


def _learn(
    plan: Plan,
    backbone: Backbone,
    learned: UpdateHistory,
    stage: int,
    folder: Path,
    progress: RunProgress,
    paths: Paths | None,
) -> TrainResult:
    """Trains one stage over the backbone as the method wants it, and saves what it trained."""
    config, task, method = plan.config, plan.tasks[stage - 1], plan.methods[stage - 1]
    options = config.train_options(task.name)
    steps_before = sum(earlier.steps for earlier in plan.stages[: stage - 1])
    examples = plan.encoded[stage - 1]
    seed = stage_seed(config.seed, stage)
    log.info("stage %d: %s, %d examples", stage, task.name, len(examples))
    learned.activate_for_training(method)
    model: Any = backbone.model
    learner = method.attach(model, config.lora, stage=stage, seed=seed)
    try:
        if stage > 1:
            method.restore(learned.memory)
        method.begin_task(learner, learned.updates)
        result = train(
            backbone,
            learner,
            examples,
            options,
            penalty=lambda: method.penalty(learner),
            extra_loss=method.extra_loss,
            seed=seed,
            folder=folder,
            paths=paths,
            on_step=progress.training(stage, task.name, plan.stages[stage - 1].steps),
            callbacks=trackers(options.report_to, Path(config.output_dir), steps_before=steps_before),
        )
        learner.commit(folder, base_model=config.model, tokenizer=backbone.tokenizer)
        learned.updates.append(learner.state())
        if still := [name for name, f in learned.updates[-1].items() if not f.B.any()]:
            more = f" and of {len(still) - 1} more layers" if len(still) > 1 else ""
            progress.say(f"stage {stage}: the update of {still[0]}{more} stayed 0; it learned nothing")
    finally:
        learner.detach()
    learned.activate_for_task(method, stage - 1)
    names = [module.name for module in plan.modules]
    learned.save_memory(folder, method.end_task(model, names, examples, backbone.tokenizer.pad_token_id))
    return result


def _answer(
    plan: Plan,
    evaluator: Evaluator,
    learned: UpdateHistory,
    tasks: Sequence[Task],
    stage: int,
    progress: RunProgress,
) -> dict[str, Answers]:
    """Answers of the model as it is after a stage, to some of the plan's tasks."""
    method = plan.methods[max(stage - 1, 0)]
    answers = {}
    for index, task in enumerate(tasks):
        learned.activate_for_task(method, index)
        answers[task.name] = evaluator.answer(task, progress.scoring(stage, task.name, len(task.test)))
        log.info("stage %d: %s answered in %.1f s", stage, task.name, answers[task.name].seconds)
    return answers


def stage_seed(seed: int, stage: int) -> int:
    """The seed of one stage: depends on both numbers alone, so that a resumed run draws what it would have drawn.

    The released code starts every stage with the same seed, so that all its adapters begin with the same A.
    """
    digest = hashlib.sha256(f"{seed}/{stage}".encode()).digest()
    return int.from_bytes(digest[:4], "big")
