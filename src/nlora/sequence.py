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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nlora.adapters import Adapter, State, load_factors
from nlora.backbone import Backbone
from nlora.data.base import Task
from nlora.evaluation import Answers, Evaluator
from nlora.folding import FoldedBackbone
from nlora.methods.base import Method
from nlora.plan import Plan
from nlora.progress import RunProgress
from nlora.record import score_row, write_stage
from nlora.run_dir import RunDir
from nlora.training import TrainResult, train

log = logging.getLogger("nlora")


def learn_sequence(plan: Plan, backbone: Backbone, run: RunDir, progress: RunProgress) -> None:
    """Teaches the backbone the plan's tasks in order; stages that the folder holds already are not repeated."""
    tasks = plan.tasks
    folded = FoldedBackbone(backbone.model, [module.name for module in plan.modules])
    evaluator = Evaluator(backbone, plan.encoder, plan.config.evaluate)
    updates: list[State] = []
    if plan.config.evaluate.zero_shot and run.zero_shot() is None:
        run.write_zero_shot(score_row(tasks, _answer(evaluator, tasks, 0, progress)))
    for stage, (task, method) in enumerate(zip(tasks, plan.methods, strict=True), start=1):
        if run.is_committed(stage):
            updates.append(load_factors(run.adapter_folder(stage)))
            continue
        folded.fold(updates if method.accumulates else [])
        with run.stage(stage, task.name) as folder:
            update, result = _learn(plan, backbone, stage, method, updates, folder, progress)
            updates.append(update)
            folded.fold(updates if method.accumulates else updates[-1:])
            seen = tasks if plan.config.evaluate.unseen else tasks[:stage]
            answers = _answer(evaluator, seen, stage, progress)
            row = write_stage(folder, tasks, stage, answers, result)
        run.write_summary()
        progress.stage_done(stage, task.name, [t.name for t in tasks], row)


def _learn(
    plan: Plan,
    backbone: Backbone,
    stage: int,
    method: Method,
    earlier: Sequence[State],
    folder: Path,
    progress: RunProgress,
) -> tuple[State, TrainResult]:
    """Trains the update of one stage over the backbone as it is, and saves it alone."""
    config, task = plan.config, plan.tasks[stage - 1]
    seed = stage_seed(config.seed, stage)
    log.info("stage %d: %s, %d examples", stage, task.name, len(plan.encoded[stage - 1]))
    model: Any = backbone.model
    adapter = Adapter.attach(model, config.lora, seed=seed)
    try:
        method.begin(adapter, earlier)
        result = train(
            backbone,
            adapter,
            plan.encoded[stage - 1],
            config.train_options(task.name),
            penalty=lambda: method.penalty(adapter),
            seed=seed,
            folder=folder,
            on_step=progress.training(stage, task.name, plan.stages[stage - 1].steps),
        )
        adapter.save(folder / "adapter", base_model=config.model)
        return adapter.state(), result
    finally:
        adapter.detach()


def _answer(
    evaluator: Evaluator, tasks: Sequence[Task], stage: int, progress: RunProgress
) -> dict[str, Answers]:
    answers = {}
    for task in tasks:
        answers[task.name] = evaluator.answer(task, progress.scoring(stage, task.name, len(task.test)))
        log.info("stage %d: %s answered in %.1f s", stage, task.name, answers[task.name].seconds)
    return answers


def stage_seed(seed: int, stage: int) -> int:
    """The seed of one stage: depends on both numbers alone, so that a resumed run draws what it would have drawn.

    The released code starts every stage with the same seed, so that all its adapters begin with the same A.
    """
    digest = hashlib.sha256(f"{seed}/{stage}".encode()).digest()
    return int.from_bytes(digest[:4], "big")
