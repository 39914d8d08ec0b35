"""`method.weight: auto`: for each task, the strongest penalty that costs the task nothing that can be measured.

A part of the task's training examples is held out (`nlora.runs.held_out`; never a test example). The task is trained on
the others without the penalty, and then with `auto_weight.tries` weights. The strongest weight wins whose value on the
held-out examples is at most `auto_weight.margin` standard errors, and `auto_weight.max_drop` points, below the value
without the penalty. With it the task is trained on all its examples, exactly as if the weight had been given.

The value is the mean probability of the right label, or the score of the answers (`auto_weight.by`). The score of a few
examples moves in large steps, and does not tell a task that is learned from one that is only just answered rightly.

With `replay`, a part of what is kept of each earlier task is held out as well. The value is then the mean over the
tasks, the new one and these, each of which counts the same. Where earlier tasks are answered by models of their own
(`serve`), no weight changes their answers, and only the new task counts.

The weights are multiples of the method's default by powers of the square root of ten, in both directions. Each try
halves what is left of them, as if a stronger penalty never learned the task better. So n tries choose among 2^n - 1
weights, and 0. A task takes n + 1 trainings more.
"""

from __future__ import annotations

import json
import logging
import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from nlora.data.task import Task
from nlora.evaluation.answer import right_probability
from nlora.evaluation.choices import decode_of, metric_of
from nlora.evaluation.continual_metrics import ROUNDING
from nlora.evaluation.evaluator import Evaluator
from nlora.methods.base import Method
from nlora.methods.registry import default_weight, with_weight
from nlora.models.backbone import Backbone
from nlora.models.fast_paths import FastPaths
from nlora.models.processes import by_main, from_main
from nlora.runs.atomic import write_json
from nlora.runs.events import Progress
from nlora.runs.folder import RunFolder
from nlora.runs.held_out import held_out, held_out_memory
from nlora.runs.layout import WEIGHTS_TRIED_FILE
from nlora.runs.plan import Plan
from nlora.runs.resumable import made_with, resumable
from nlora.runs.stage_examples import stage_examples
from nlora.runs.stage_training import attached, held_out_score, train_stage
from nlora.runs.task_records import TaskRecord
from nlora.runs.update_history import UpdateHistory
from nlora.runs.weights_tried import Tried

log = logging.getLogger("nlora")


@dataclass(frozen=True)
class _Search:
    """The search for one stage's weight.

    plan: of the stage without the held-out examples, which are its test ones. memory: earlier tasks with what is held
    out of their kept examples as test ones.
    """

    plan: Plan
    memory: tuple[Task, ...]
    run: RunFolder
    backbone: Backbone
    history: UpdateHistory
    stage: int
    records: Mapping[str, TaskRecord]
    progress: Progress
    paths: FastPaths | None

    @property
    def file(self) -> Path:
        """Where the scores are kept until the stage is committed."""
        return self.run.resume_folder(self.stage) / WEIGHTS_TRIED_FILE

    def weight(self) -> tuple[float, float]:
        """The weight to train with, and the seconds of all tries."""
        tried = from_main(self._known)
        method = self.plan.methods[self.stage - 1]
        if not tried.scores and not self._has_penalty(method):
            return default_weight(method), 0.0
        without = self._score(tried, 0.0)
        options = self.plan.config.auto_weight
        tried.margin = min(options.margin * tried.standard_error(), options.max_drop)
        least = without - tried.margin - ROUNDING
        tried.weight = strongest(
            options.weights(default_weight(method)), lambda weight: self._score(tried, weight) >= least
        )
        self._keep(tried)
        return tried.weight, tried.seconds

    def _has_penalty(self, method: Method) -> bool:
        """Whether the weight changes this stage's loss. Of most methods it does not at the first task."""
        weighted = self._added(default_weight(method))
        return weighted is not None and weighted != self._added(0.0)

    def _added(self, weight: float) -> float | None:
        """What the method adds to the loss of some update; None if nothing. An extra loss counts as NaN."""
        plan = _with_weight(self.plan, self.stage, weight)
        method = plan.methods[self.stage - 1]
        with attached(plan, self.backbone, self.history, self.stage) as trainable:
            with torch.no_grad():
                for f in trainable.factors().values():
                    f.B.fill_(1.0)  # of a fresh update, which is 0, a penalty may be 0 with any weight
            penalty = method.penalty(trainable)
            if penalty is not None:
                return float(penalty.detach())
            logits = torch.zeros(1, 1, 2)
            extra = method.extra_loss(logits, torch.zeros(1, 1, dtype=torch.int64), logits.clone)
            return None if extra is None else math.nan

    def _score(self, tried: Tried, weight: float) -> float:
        """The held-out examples' score after a training with this weight, in percent."""
        if weight in tried.scores:
            return tried.scores[weight]
        begin = time.perf_counter()
        plan = _with_weight(self.plan, self.stage, weight)
        task = plan.tasks[self.stage - 1]
        n = len(plan.encoded[self.stage - 1])
        self.progress.say(f"stage {self.stage}: {task.name}, trying weight {weight:.3g} on {n} examples")
        with (
            resumable(
                plan, self.run, self.stage, self.records, self.backbone.model, self.paths, self.progress.say
            ) as points,
            tempfile.TemporaryDirectory() as folder,
            attached(plan, self.backbone, self.history, self.stage) as trainable,
        ):
            ready = time.perf_counter()
            result = train_stage(
                plan, self.backbone, trainable, self.stage, self.records[task.name].metric, Path(folder),
                self.progress, self.paths, points, is_tracked=False,
            )  # fmt: skip
            # Those of a training that was resumed.
            before = max(0.0, result.seconds - (time.perf_counter() - ready))
            of_tasks = {some.name: self._value(plan, some) for some in (task, *self.memory)}
            score = sum(of_tasks.values()) / len(of_tasks)
            tried.scores[weight], tried.of_tasks[weight] = score, of_tasks
            tried.seconds += before + time.perf_counter() - begin
            self._keep(tried)  # here: a stop that was asked for meanwhile ends the block
            if points is not None:
                points.clear()
        each = ", ".join(f"{name} {value:.1f}" for name, value in of_tasks.items())
        more = f" ({each})" if self.memory else ""
        log.info(
            "stage %d: %s, weight %g: %.1f %% on the held-out examples%s",
            self.stage, task.name, weight, score, more,
        )  # fmt: skip
        return score

    def _value(self, plan: Plan, task: Task) -> float:
        """What the model in training is worth on the task's held-out examples, in percent."""
        if not self._by_probability(task):
            return held_out_score(plan, self.backbone, task, self.records[task.name].metric, self.paths)()
        evaluator = Evaluator(self.backbone, plan.encoder, plan.config.evaluate, self.paths)
        return right_probability(task, evaluator.answer(task, probabilities=True).probabilities or ())

    def _by_probability(self, task: Task) -> bool:
        config = self.plan.config
        return (
            config.auto_weight.by == "probability"
            and decode_of(task, config.evaluate) == "labels"
            and metric_of(task, config) == "exact_match"
        )

    def _known(self) -> Tried:
        """What was tried before the run was stopped, if it was with the same things."""
        now = Tried(
            by="probability" if self._by_probability(self.plan.tasks[self.stage - 1]) else "score",
            examples=len(self.plan.tasks[self.stage - 1].test),
            remembered={task.name: len(task.test) for task in self.memory},
            made_with=self._made_with(),
        )
        try:
            before = Tried.model_validate_json(self.file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return now
        same = ("made_with", "by", "examples", "remembered")
        return before if all(getattr(before, name) == getattr(now, name) for name in same) else now

    def _made_with(self) -> dict[str, Any]:
        found = made_with(self.plan, self.run, self.stage, self.records, self.backbone.model, self.paths)
        as_written: dict[str, Any] = json.loads(json.dumps(found))
        return as_written

    @by_main
    def _keep(self, tried: Tried) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.file, tried.kept())


def strongest(weights: Sequence[float], is_allowed: Callable[[float], bool]) -> float:
    """The largest of ascending weights that is allowed, found by halving; 0 if none is.

    >>> asked = []
    >>> strongest([0.3, 1.0, 3.0], lambda weight: asked.append(weight) or weight < 0.9)
    0.3
    >>> asked
    [1.0, 0.3]
    """
    low, high = -1, len(weights)  # allowed, not allowed
    while high - low > 1:
        half = (low + high) // 2
        low, high = (half, high) if is_allowed(weights[half]) else (low, half)
    return weights[low] if low >= 0 else 0.0


def with_chosen_weight(
    plan: Plan,
    run: RunFolder,
    backbone: Backbone,
    history: UpdateHistory,
    stage: int,
    folder: Path,
    records: Mapping[str, TaskRecord],
    progress: Progress,
    paths: FastPaths | None,
) -> tuple[Plan, float]:
    """The plan with the weight that was chosen for a stage, and the seconds of the search before the run was stopped.

    folder: the stage's, which gets weights_tried.json.
    """
    begin = time.perf_counter()
    divided, memory = _without_held_out(plan, stage)
    search = _Search(divided, memory, run, backbone, history, stage, records, progress, paths)
    weight, seconds = search.weight()
    before = max(0.0, seconds - (time.perf_counter() - begin))
    if from_main(search.file.is_file):
        _copy(search.file, folder / WEIGHTS_TRIED_FILE)
    return _with_weight(plan, stage, weight), before


@by_main
def _copy(source: Path, target: Path) -> None:
    tried = Tried.model_validate_json(source.read_text(encoding="utf-8"))
    write_json(
        target, {key: value for key, value in tried.kept().items() if key not in ("made_with", "seconds")}
    )


def _with_weight(plan: Plan, stage: int, weight: float) -> Plan:
    method = with_weight(plan.methods[stage - 1], weight)
    method.check(plan.modules)
    # Neither finds a problem that the plan did not. A method may store what they are given.
    method.check_sequence(len(plan.tasks))
    return replace(plan, methods=_with(plan.methods, stage, method))


def _without_held_out(plan: Plan, stage: int) -> tuple[Plan, tuple[Task, ...]]:
    """The plan in which the stage's task has the held-out examples as test examples, and trains on the others.

    With `replay`, also the earlier tasks that have held-out examples of their own, on which it does not train either.
    """
    config, index = plan.config, stage - 1
    method, given = plan.methods[index], plan.examples[index]
    tasks = _with(plan.tasks, stage, held_out(config, plan.tasks[index]))
    kept = given.portions[1:] if config.replay.is_on else ()
    memory: list[Task] = []
    if not method.needs_task:
        memory = held_out_memory(config, kept)
        kept = [(task, task.train) for task in memory]
    of_names = {task.name: some for task, some in kept}
    examples = stage_examples(config, tasks, method, plan.encoder, index, of_names)
    steps = config.train_options(tasks[index].name).steps(examples.in_epoch)
    divided = replace(
        plan,
        tasks=tasks,
        examples=_with(plan.examples, stage, examples),
        stages=_with(plan.stages, stage, replace(plan.stages[index], steps=steps)),
    )
    return divided, tuple(task for task in memory if task.test)


def _with(values: tuple[Any, ...], stage: int, value: Any) -> tuple[Any, ...]:
    return (*values[: stage - 1], value, *values[stage:])
