"""Small finished runs, made once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_runs import small

from helpers import learn, write_config


@pytest.fixture(scope="session")
def finished_run(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[[str], Path]
) -> Callable[..., Path]:
    """make(family, method, **changes of the configuration) -> the folder of a run of two tasks; do not change it.

    It generates, and learns fast, so that what the model has become shows in its answers.
    """
    made: dict[str, Path] = {}

    def make(family: str = "llama", method: str = "nlora", **changes: Any) -> Path:
        key = f"{family}-{method}-{changes}"
        if key not in made:
            folder = tmp_path_factory.mktemp("run")
            values: dict[str, Any] = {
                "method": method,
                "train": {"epochs": 3, "batch_size": 8, "learning_rate": 2e-2, "max_target_tokens": 8},
                "evaluate": {"batch_size": 4, "decode": "generate"},
            }
            learn(write_config(folder, tiny_model(family), **(values | changes)))
            made[key] = folder / "run"
        return made[key]

    return make


@pytest.fixture(scope="session")
def small_run(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[[str], Path]
) -> Callable[[str], Path]:
    """make(method) -> a folder with config.yaml, and its finished run in `run`; do not change it."""
    made: dict[str, Path] = {}

    def make(method: str = "nlora") -> Path:
        if method not in made:
            folder = made[method] = tmp_path_factory.mktemp("small")
            learn(small(folder, tiny_model("llama"), method=method))
        return made[method]

    return make
