"""The training of a stage that can be stopped at any step and resumed there."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from nlora.config.schema import LoraOptions
from nlora.data.digest import digest
from nlora.methods.base import Method
from nlora.models import processes
from nlora.models.fast_paths import FastPaths
from nlora.runs.folder import RunFolder
from nlora.runs.layout import STAGE_FILE
from nlora.runs.plan import Plan
from nlora.runs.resume_points import StageResumePoints
from nlora.runs.run_changes import FREE
from nlora.runs.signals import stopped_on_request
from nlora.runs.task_records import TaskRecord


@contextmanager
def resumable(
    plan: Plan,
    run: RunFolder,
    stage: int,
    records: Mapping[str, TaskRecord],
    model: Any,
    paths: FastPaths | None,
    say: Callable[[str], None],
) -> Iterator[StageResumePoints | None]:
    """A block that trains a stage, with its resume points; a signal ends it once the next step is saved.

    records: of the tasks, by name. paths: None: as the model's properties allow. say: takes a line for the user.
    None if nothing is to be saved.
    """
    options = plan.config.train_options(plan.tasks[stage - 1].name)
    if options.save_every is None:
        yield None
        return
    with stopped_on_request() as request:
        yield StageResumePoints(
            run.resume_folder(stage),
            plan.stages[stage - 1].steps,
            options,
            made_with(plan, run, stage, records, model, paths),
            request,
            say,
        )


def made_with(
    plan: Plan,
    run: RunFolder,
    stage: int,
    records: Mapping[str, TaskRecord],
    model: Any,
    paths: FastPaths | None,
) -> dict[str, Any]:
    """What the rest of a half-trained task depends on, in addition to what a run's folder never lets change.

    JSON values by what they are in words. If all are the same, a resume point fits.
    """
    method = plan.methods[stage - 1]
    options = plan.config.train_options(plan.tasks[stage - 1].name)
    free = {key.removeprefix("train.") for key in FREE if key.startswith("train.")}
    tasks = plan.tasks if method.at_once else plan.tasks[:stage]
    found = {
        "train options": options.model_dump(mode="json", exclude=free),
        "method options": method.options.model_dump(mode="json"),
        "examples": {
            task.name: [records[task.name].train.sha256, records[task.name].prompt_sha256] for task in tasks
        },
        # Of an older version, which wrote no checksums: a stage that is trained again has other timings.
        "earlier stages": run.weights_before(stage)
        or [
            hashlib.sha256((run.stage_folder(earlier) / STAGE_FILE).read_bytes()).hexdigest()
            for earlier in range(1, stage)
        ],
        "versions": {name: version for name, version in run.versions.items() if name != "processes"},
        "kinds of device": model.device.type,
    }
    found["numbers of examples and steps"] = [len(plan.encoded[stage - 1]), plan.stages[stage - 1].steps]
    task, record = plan.tasks[stage - 1], records[plan.tasks[stage - 1].name]
    if task.validation or method.chooses_weight:  # scores decide
        found["ways of scoring"] = [record.metric, record.decode, digest(task.validation)]
    if type(method).check_sequence is not Method.check_sequence:  # it may plan for the number of tasks
        found["numbers of tasks"] = len(plan.tasks)
    if _draws_apart(model, plan.config.lora, paths):
        found["numbers of processes"] = processes.size()
    return found


def _draws_apart(model: Any, lora: LoraOptions, paths: FastPaths | None) -> bool:
    """Whether a training step may have dropout whose masks each process draws for its own examples.

    The backbone's own dropout does. The updates' dropout does, unless its masks are keyed by example
    (`nlora.training.keyed_masks`): on a CPU, and not in an expert, which sees only some of the tokens.
    """
    if any(rate > 0 for rate in _dropout_rates(model.config.to_dict())):
        return True
    keyed = model.device.type == "cpu" and (paths is None or paths.fast_modules)
    has_experts = any("expert" in name for name, _ in model.named_modules())
    return lora.dropout > 0 and (has_experts or not keyed)


def _dropout_rates(config: Mapping[Any, Any]) -> Iterator[float]:
    """Those of a model's configuration and of the ones within it, such as `text_config`."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _dropout_rates(value)
        elif "drop" in str(key) and isinstance(value, float):
            yield value
