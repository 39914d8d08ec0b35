"""What may change in the configuration of a run that has already started, and what runs of several seeds share.

What a committed stage depends on may not. Later tasks may be appended, replaced and trained otherwise, and so may
everything that changes neither an update nor a score.
"""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any

from nlora.data.digest import text_digest

if TYPE_CHECKING:
    from nlora.config.schema import Config

FREE = frozenset(
    {
        "name",
        "data",
        "fsdp",
        "train.micro_batch_size",
        "train.gradient_checkpointing",
        "train.report_to",
        "train.logging_steps",
        "train.save_every",
        "evaluate.batch_size",
        "evaluate.zero_shot",
        "evaluate.general",
    }
)
"""Keys that change neither an update nor a score, apart from rounding. `data` is where tasks are found; that those of
committed stages are still the same is checked by their digests. `evaluate.zero_shot` adds scores, and
`evaluate.general` other numbers, of which `nlora.runs.general` refuses those that would not compare."""

_COMPARED_ELSEWHERE = (
    *("seed", "output_dir", "model", "tasks", "protocol", "replay"),
    *("evaluate.decode", "evaluate.max_samples", "evaluate.unseen", "evaluate.split"),
)
"""Keys in which runs of one method may differ, or whose effect a summary has by itself: in its digests, its metrics and
its `replay`."""


def settings_digest(config: Config) -> str:
    """SHA-256 of what a run trains and answers with beside its tasks, its model and its seed.

    Runs whose seeds may be averaged have the same. Defaults are left out, so that a new key changes nothing.
    """
    settings = config.model_dump(mode="json", exclude_defaults=True)
    for path in (*_COMPARED_ELSEWHERE, *FREE):
        for values in (settings, *settings.get("stages", {}).values()):
            _remove(values, path.split("."))
    return text_digest([json.dumps(_without_empty(settings), sort_keys=True)])


def _without_empty(values: Any) -> Any:
    """Without mappings in which nothing is left."""
    if not isinstance(values, dict):
        return values
    left = {key: _without_empty(value) for key, value in values.items()}
    return {key: value for key, value in left.items() if value != {}}


def fixed_parts(
    old: dict[str, Any], new: dict[str, Any], committed: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The parts of two configurations that must be equal if the run is to continue from one to the other.

    old, new: `Config.model_dump(mode="json")`. committed: stages that the run has. Tasks after these may change; the
    model, the method and the other settings may not, even before the first stage.

    >>> old = {"tasks": [{"name": "a"}], "stages": {}, "seed": 1}
    >>> new = {"tasks": [{"name": "a"}, {"name": "b"}], "stages": {"b": {"train": {"epochs": 3}}}, "seed": 1}
    >>> one, other = fixed_parts(old, new, committed=1)
    >>> one == other
    True
    """
    kept = []
    for config in (old, new):
        fixed = copy.deepcopy(config)
        tasks = fixed.get("tasks")
        if isinstance(tasks, list):
            fixed["tasks"] = tasks[:committed]
            names = [task.get("name") for task in fixed["tasks"] if isinstance(task, dict)]
            fixed["stages"] = {
                name: stage for name, stage in (fixed.get("stages") or {}).items() if name in names
            }
        for path in FREE:
            _remove(fixed, path.split("."))
            for stage in fixed.get("stages", {}).values():
                _remove(stage, path.split("."))
        if "stages" in fixed:
            fixed["stages"] = {name: s for name, s in _without_empty(fixed["stages"]).items() if s != {}}
        kept.append(fixed)
    return kept[0], kept[1]


def _remove(values: Any, path: list[str]) -> None:
    for key in path[:-1]:
        values = values.get(key) if isinstance(values, dict) else None
    if isinstance(values, dict):
        values.pop(path[-1], None)
