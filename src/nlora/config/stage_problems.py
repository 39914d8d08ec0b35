"""What is wrong with the training options of single tasks: only merged with those of all tasks are they an answer.

stage_problems({"train": {"epochs": 1}, "stages": {"agnews": {"train": {"epochs": 0}}}}, places)
"""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from nlora.config.messages import number_problems, problems_of
from nlora.config.schema import TrainOptions
from nlora.config.yaml_positions import Key, SourceMap
from nlora.errors import Problem


def stage_problems(data: dict[str, Any], places: SourceMap) -> list[Problem]:
    """Training options of single tasks that are wrong once merged with those of all tasks."""
    shared = data["train"] if isinstance(data.get("train"), dict) else {}
    shared_is_right = _train_error(shared) is None
    problems: list[Problem] = []
    stages = data.get("stages")
    for name, stage in stages.items() if isinstance(stages, dict) else ():
        own = stage.get("train") if isinstance(stage, dict) else None
        if not isinstance(own, dict):
            continue
        at_key: Key = ("stages", name, "train")

        def locate(path: Key, own: dict[str, Any] = own, at_key: Key = at_key) -> Key | None:
            # A mistake in `train` itself is reported there; one of no single key, only where `train` is
            # right.
            return (*at_key, *path) if (path[0] in own if path else shared_is_right) else None

        problems += number_problems(own, TrainOptions, places, at_key)
        error = _train_error({**shared, **own})
        problems += problems_of(error, TrainOptions, places, locate) if error else []
    return problems


def _train_error(options: dict[str, Any]) -> ValidationError | None:
    try:
        TrainOptions.model_validate(options)
    except ValidationError as error:
        return error
    return None
