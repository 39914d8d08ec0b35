"""The loop: one model learns one task after another.

    for each task: train a fresh update on top of the backbone with all earlier updates merged
                   -> save the update as a stock PEFT adapter
                   -> score the model on every task seen so far
                   -> commit the stage, all of it or nothing

After stage k the model of most methods is W + Σ_{i<=k} ΔW_i, for every task and without a task id.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from nlora.data.task import Task
from nlora.evaluation.choices import Metric
from nlora.evaluation.evaluator import Answers, Evaluator
from nlora.models.adapter_source import copy_adapter
from nlora.models.backbone import Backbone
from nlora.models.fast_paths import FastPaths
from nlora.models.processes import from_main
from nlora.runs.auto_weight import with_chosen_weight
from nlora.runs.events import Progress
from nlora.runs.folder import RunFolder
from nlora.runs.general import GeneralProbe
from nlora.runs.hardest import keep_hardest, with_hardest
from nlora.runs.layout import ADAPTER
from nlora.runs.plan import Plan
from nlora.runs.repair import Repair
from nlora.runs.resumable import resumable
from nlora.runs.resume_points import StageResumePoints
from nlora.runs.served_model import ServedModel
from nlora.runs.stage_files import keep_trained, trained
from nlora.runs.stage_notes import answer_notes, training_notes
from nlora.runs.stage_results import scores_of, task_records, write_skipped, write_stage
from nlora.runs.stage_training import attached, new_examples, stage_seed, train_stage
from nlora.runs.task_router import TaskRouter
from nlora.runs.update_history import UpdateHistory
from nlora.runs.weights_tried import weight_notes
from nlora.training.result import NOTHING_TRAINED, TrainResult

log = logging.getLogger("nlora")


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
    router = None
    if plan.config.serve == "routed":
        router = TaskRouter(backbone, plan.encoder, history, plan.config)
    committed = [run.stage_record(stage) for stage in run.committed_stages()]
    last_trained = max((r.stage for r in committed if not (r.is_skipped or r.is_adopted)), default=0)
    # Scores of tasks that have left the list have no records by which to tell whether they are of the same examples.
    known = {name: score for name, score in (run.zero_shot() or {}).items() if name in records}
    if plan.config.evaluate.zero_shot and (
        new := [task for task in tasks if task.test and task.name not in known]
    ):
        answers = _answer(ServedModel(plan.methods[0], history, evaluator), new, 0, progress)
        run.write_zero_shot(known | scores_of(new, answers, records), records)
    general = GeneralProbe(plan.general, backbone, history, run, progress)
    general.before()
    before = 0  # the last stage so far that was trained, of which a method may have a memory
    for stage, (task, method) in enumerate(zip(tasks, plan.methods, strict=True), start=1):
        if repair is not None:
            repair.prepare(stage)
        plan = with_hardest(plan, run, stage)
        if run.is_committed(stage):
            record = run.stage_record(stage)
            if record.is_skipped:
                history.skip()
            else:
                folder = run.stage_folder(stage)
                is_last = stage == last_trained or repair is not None  # any next stage may be trained again
                history.reload_stage(folder, method, is_last=is_last, is_adopted=record.is_adopted)
                before = before if record.is_adopted else stage
            if router is not None:
                router.reload(run.stage_folder(stage), task.name)
            continue
        scores: dict[str, float] | None = None
        notes: list[str] = []
        with run.stage(stage) as folder:
            begun = time.perf_counter()
            if router is not None:
                router.learn(folder, task, stage_seed(plan.config.seed, stage))
            adopted, kept = plan.adopted.get(stage), from_main(trained, folder)
            if not kept and adopted is None and not plan.encoded[stage - 1]:  # the method trains nothing here
                history.skip()
                write_skipped(folder, tasks, stage)
            else:
                if kept:
                    log.info("stage %d: %s is trained already and only needs scoring", stage, task.name)
                    history.reload_stage(folder, method, is_last=True, is_adopted=adopted is not None)
                    result = TrainResult(**kept)
                elif adopted is not None:
                    from_main(copy_adapter, adopted.folder, folder / ADAPTER)
                    history.add(adopted.update)
                    result = NOTHING_TRAINED
                    keep_trained(folder, asdict(result), records[task.name], run.weights_before(stage))
                else:
                    own = plan
                    if method.chooses_weight:  # for this stage alone: no later one has to keep its method
                        own, earlier = with_chosen_weight(
                            plan, run, backbone, history, stage, folder, records, progress, paths
                        )
                        begun -= earlier
                    with resumable(own, run, stage, records, backbone.model, paths, progress.say) as points:
                        metric = records[task.name].metric
                        result = _train(
                            own, backbone, history, stage, metric, folder, progress, paths, points, begun
                        )
                        keep_trained(folder, asdict(result), records[task.name], run.weights_before(stage))
                seen = tasks if plan.config.evaluate.unseen else tasks[:stage]
                served = ServedModel(method, history, evaluator, router)
                answers = _answer(served, seen, stage, progress)
                notes = answer_notes(seen, answers)
                if adopted is None:
                    options = plan.config.train_options(task.name)
                    trained_notes = training_notes(result, history.updates[-1], options)
                    notes = [*weight_notes(folder), *trained_notes, *notes]
                scores = write_stage(
                    folder,
                    tasks,
                    stage,
                    answers,
                    result,
                    records,
                    is_adopted=adopted is not None,
                    notes=notes,
                    examples=plan.examples[stage - 1],
                    general=general.after(stage, task.name, method),
                )
                method.release()  # what it has answered with
        if adopted is None and plan.encoded[stage - 1]:  # the stage has a memory of its own
            if before:
                run.drop_memory(before)
            before = stage
        run.write_summary()
        if scores is not None:  # only now: who hears of it finds the stage in the folder
            progress.stage_done(stage, task.name, scores)
            _say(notes, stage, task.name, progress)


def _say(notes: Sequence[str], stage: int, task: str, progress: Progress) -> None:
    for note in notes:
        log.warning("stage %d, %s: %s", stage, task, note)
        progress.say(f"stage {stage}, {task}: {note}")


def _train(
    plan: Plan,
    backbone: Backbone,
    history: UpdateHistory,
    stage: int,
    metric: Metric,
    folder: Path,
    progress: Progress,
    paths: FastPaths | None,
    points: StageResumePoints | None,
    begun: float,
) -> TrainResult:
    """Train one stage as the method wants it, and save what was trained. begun: when its preparation was."""
    method = plan.methods[stage - 1]
    log.info("stage %d: %s, %d examples", stage, plan.tasks[stage - 1].name, len(plan.encoded[stage - 1]))
    with attached(plan, backbone, history, stage) as trainable:
        ready = time.perf_counter()
        result = train_stage(plan, backbone, trainable, stage, metric, folder, progress, paths, points)
        over = time.perf_counter()
        from_main(trainable.commit, folder, base_model=plan.config.model, tokenizer=backbone.tokenizer)
        history.add(trainable.state())
    history.activate_for_task(method, stage - 1)
    model: Any = backbone.model
    names, examples = [module.name for module in plan.modules], new_examples(plan, stage)
    history.save_memory(folder, method.end_task(model, names, examples, backbone.tokenizer.pad_token_id))
    keep_hardest(plan, backbone, stage, folder, paths)
    return replace(result, prepare_seconds=ready - begun + time.perf_counter() - over)


def _answer(served: ServedModel, tasks: Sequence[Task], stage: int, progress: Progress) -> dict[str, Answers]:
    """The answers of the model after a stage to the test examples of some of the plan's tasks."""
    answers = {}
    for index, task in enumerate(tasks):
        if not task.test:  # of an adapter from elsewhere
            continue
        on_answered = progress.scoring(stage, task.name, len(task.test))
        answers[task.name] = served.answer(task, index, on_answered)
        log.info("stage %d: %s answered in %.1f s", stage, task.name, answers[task.name].seconds)
    return answers
