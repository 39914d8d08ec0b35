"""The interference of a run's finished stages, under their tasks' names, in the order of learning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from nlora.analysis.forgetting import against_forgetting
from nlora.analysis.interference import compare_states
from nlora.analysis.measurements import Measurements
from nlora.config import base_folder
from nlora.config.outside_code import is_python_file
from nlora.errors import InputErrors, RunError
from nlora.methods.base import Method
from nlora.methods.registry import build
from nlora.models.lora_factors import AdapterState, LoraFactors, load_factors, stack
from nlora.runs.checksums import refuse_damaged_weights
from nlora.runs.interference_file import Interference, RunFacts
from nlora.runs.layout import ADAPTER, OUTPUTS, RUN_FILE, stage_name
from nlora.runs.run_yaml import read_run_file
from nlora.runs.stage_files import refuse_gap
from nlora.runs.summary import SUMMARY_FILE, Summary, read_summary


def analyze_run(folder: str | Path, threshold: float | None = None) -> Interference:
    """The content of a run's analysis.json. Writes nothing; `measure_run` has the errors."""
    return measure_run(Path(folder), threshold)[1]


def looks_like_run(folder: Path) -> bool:
    """Whether the folder has a file of a run. What is wrong with it, if it is no whole one, its readers say."""
    return (folder / SUMMARY_FILE).is_file() or (folder / RUN_FILE).is_file()


def measure_run(folder: Path, threshold: float | None) -> tuple[Measurements, Interference]:
    """The measures by module, and their summary with `run` and `forgetting`.

    threshold: absolute; None: the default of `nlora.analysis.threshold`. A single finished stage has no pairs.
    Raises RunError if no stage is finished or the stages hold no adapters, AdapterError if an adapter is damaged.
    """
    summary = read_summary(folder)
    states: Mapping[str, AdapterState] = _stages(folder, summary)
    notes = []
    if len(states) < len(summary.tasks):
        notes.append(f"{len(states)} of {len(summary.tasks)} stages have an update.")
    method = _method(folder, summary.method)
    if method is not None:
        states, note = _compared(method, states)
        notes += note
    measured = compare_states(states, threshold, one_backbone=True)
    if method is not None and method.updates == "continued":
        undefined = np.full_like(measured.pairs["orthogonality"], np.nan)
        measured = replace(measured, pairs={**measured.pairs, "orthogonality": undefined})
    measured = replace(measured, notes=[*notes, *measured.notes])
    found = measured.interference()
    facts = RunFacts(
        name=summary.name,
        method=summary.method,
        model=summary.model,
        seed=summary.seed,
        status=summary.status,
    )
    forgetting = against_forgetting(summary.tasks, summary.R, found.pairs)
    return measured, found.model_copy(update={"run": facts, "forgetting": forgetting})


def _stages(folder: Path, summary: Summary) -> dict[str, AdapterState]:
    """The adapters of the finished stages by task, in order."""
    stages = {task: folder / OUTPUTS / stage_name(k, task) for k, task in enumerate(summary.tasks, start=1)}
    refuse_gap(list(stages.values()))
    finished = {task: stage for task, stage in stages.items() if stage.is_dir()}
    if not finished:
        raise RunError(
            f"{folder}: none of its {len(stages)} stages is finished; resume the run, then analyze it"
        )
    with_adapter = {task: stage for task, stage in finished.items() if (stage / ADAPTER).is_dir()}
    for stage in with_adapter.values():
        refuse_damaged_weights(stage)
    states = {task: load_factors(stage / ADAPTER) for task, stage in with_adapter.items()}
    if not states:
        raise RunError(
            f"{folder}: its stages hold no adapters ({summary.method}); only LoRA updates can be compared"
        )
    return states


def _method(folder: Path, name: str) -> Method | None:
    """The run's method; None if this version does not have it.

    name: as in the summary. If it is a file, run.yaml has its path. Raises InputErrors if that cannot be loaded.
    """
    try:
        record = read_run_file(folder)
    except RunError:  # the summary is enough for everything else here
        record = {"config": {}}
    choice = record["config"].get("method")
    options = dict(choice) if isinstance(choice, dict) else {}
    name = options.pop("name", name)
    try:
        return build(name, options, base_folder=base_folder.read(record, folder))
    except InputErrors:
        if is_python_file(name):
            raise
        return None


def _compared(
    method: Method, states: Mapping[str, AdapterState]
) -> tuple[Mapping[str, AdapterState], list[str]]:
    """The updates to compare, by task, with a note if the model is not the sum of what the stages trained."""
    if method.at_once:  # what it trained before a task was appended has no part in the model
        return dict([*states.items()][-1:]), []
    if method.updates != "continued":
        note = f"{method.name} answers with a merge of the stages' updates; they are compared as they were trained."
        return states, [note] if method.merges else []
    if method.merges:
        updates = list(states.values())
        states = {task: method.active_for(updates[: k + 1], k)[0] for k, task in enumerate(states)}
    why = "answers with a merge of all stages" if method.merges else "trains one adapter through all tasks"
    note = (
        f"{method.name} {why}, so a stage's update is its change in that stage, ΔW_k - ΔW_{{k-1}}. "
        "Such a change has no factor A of its own: O-LoRA's orthogonality is left out."
    )
    return _changes(states), [note]


def _changes(states: Mapping[str, AdapterState]) -> dict[str, AdapterState]:
    """The change in each stage of an adapter that is trained through all of them: ΔW_k - ΔW_{k-1}."""
    changes: dict[str, AdapterState] = {}
    before: AdapterState = {}
    for task, state in states.items():
        changes[task] = {
            name: stack([f, _negative(before[name])]) if name in before else f for name, f in state.items()
        }
        before = state
    return changes


def _negative(f: LoraFactors) -> LoraFactors:
    return LoraFactors(f.A, f.B, -f.scaling)
