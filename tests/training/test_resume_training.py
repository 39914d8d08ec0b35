"""A training that resumes at any of its steps ends with the same bits as one that was not interrupted."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kept_points import Points
from nlora.config.schema import LoraOptions
from nlora.config.train_options import TrainOptions
from nlora.data.task import TokenizedExample
from nlora.models.backbone import load_backbone
from nlora.models.fast_paths import Rows, default_paths
from nlora.models.full_model import FullModel
from nlora.models.lora_adapter import LoraAdapter
from nlora.models.osf_layers import OsfLayers
from nlora.models.soft_prompts import PromptPool, SoftPrompts
from nlora.training.random_state import random_state, set_random_state
from nlora.training.state_file import read_state, write_state
from nlora.training.trainer import train

PREFIX = tuple(range(20, 34))
EXAMPLES = [
    TokenizedExample((*PREFIX, *range(40, 40 + i % 5 + 1)), (50 + i % 7, *range(60, 60 + i % 3), 1))
    for i in range(22)
]  # three steps of 8, 8 and 6 examples an epoch
LORA = LoraOptions(r=4, alpha=8, dropout=0.1)
TIMES = {
    "seconds",
    "peak_memory_bytes",
    "train_runtime",
    "train_samples_per_second",
    "train_steps_per_second",
}


def attached(kind: str, model: Any) -> Any:
    if kind == "full":
        return FullModel.attach(model)
    if kind == "prompts":
        return SoftPrompts.attach(model, tokens=3, stage=1, seed=1)
    if kind == "pool":
        return PromptPool.attach_pool(model, pool=6, tokens=2, top_k=2, pull=0.5, stage=1, seed=1)
    return (
        OsfLayers.attach(model, LORA, preserved=0.5)
        if kind == "osf"
        else LoraAdapter.attach(model, LORA, seed=1)
    )


def outcome(
    model: Path,
    folder: Path,
    points: Points | None,
    options: TrainOptions,
    kind: str,
    dtype: str,
    training: Rows | None,
) -> tuple[dict[str, torch.Tensor], Any, Any]:
    """What a training leaves: the tensors, the result, and the log; times aside."""
    folder.mkdir(exist_ok=True)
    backbone: Any = load_backbone(str(model), dtype=dtype)
    paths = default_paths(backbone.model)
    paths = replace(paths, training=training or paths.training)
    trainable = attached(kind, backbone.model)
    scores = {1: 40.0, 2: 60.0, 3: 50.0, 4: 55.0}
    epochs = [0 if points is None or points.latest is None else (int(points.latest.name) + 1) // 3]

    def score() -> float:
        epochs[0] += 1
        return scores[epochs[0]]

    def penalty() -> torch.Tensor:
        return 1e-3 * sum(p.float().pow(2).sum() for p in trainable.live_tensors().values())  # type: ignore

    def extra_loss(logits: torch.Tensor, targets: torch.Tensor, before: Any) -> torch.Tensor:
        return 0.01 * logits.float().pow(2).mean()

    random.seed(len(folder.name))  # whatever an earlier task, or another process, left there
    torch.manual_seed(len(folder.name))
    result = train(
        backbone,
        trainable,
        EXAMPLES,
        options,
        penalty=penalty,
        extra_loss=extra_loss,
        seed=5,
        folder=folder,
        weights=np.linspace(0.5, 2.0, len(EXAMPLES)) if options.label_weights else None,
        paths=paths,
        score=score,
        points=points,
    )
    log = json.loads((folder / "trainer_state.json").read_text())
    timeless = {key: value for key, value in asdict(result).items() if key not in TIMES}
    log["log_history"] = [{k: v for k, v in line.items() if k not in TIMES} for line in log["log_history"]]
    return {name: tensor.detach().clone() for name, tensor in trainable.live_tensors().items()}, timeless, log


@pytest.mark.parametrize(
    ("family", "kind", "dtype", "training", "resumed", "options"),
    [
        ("llama", "lora", "float32", None, [1, 3, 4], {}),
        ("llama", "lora", "float32", None, [2, 5], {"batches": "random", "micro_batch_size": 2}),
        (
            "llama",
            "lora",
            "float32",
            "padded",
            [4],
            {"schedule": "cosine", "warmup_steps": 3, "weight_decay": 0.1},
        ),
        ("llama", "lora", "float32", "single", [1], {"epochs": 1}),
        ("llama", "lora", "bfloat16", None, [4], {"gradient_checkpointing": True}),
        ("llama", "lora", "float32", None, [4], {"label_weights": "balanced", "micro_batch_size": 4}),
        ("llama", "lora", "float32", None, [3, 4, 6, 9], {"epochs": 6, "early_stopping": {"patience": 2}}),
        ("llama", "lora", "float32", None, [3, 4], {"epochs": 1.5}),
        ("llama", "full", "float32", None, [4], {"learning_rate": 1e-4}),
        ("llama", "full", "bfloat16", None, [3], {"learning_rate": 1e-4}),
        ("llama", "osf", "float32", None, [4], {"learning_rate": 1e-4}),
        ("llama", "prompts", "bfloat16", None, [4], {"learning_rate": 0.1, "gradient_checkpointing": True}),
        ("llama", "pool", "float32", None, [4], {"learning_rate": 0.1, "micro_batch_size": 4}),
        ("gpt2", "lora", "float32", None, [3, 4], {}),
        ("t5", "lora", "float32", None, [2, 3, 4], {"micro_batch_size": 4}),
    ],
    ids=str,
)
def test_it_ends_with_the_same_bits(
    tmp_path: Path,
    tiny_model: Callable[[str], Path],
    family: str,
    kind: str,
    dtype: str,
    training: Rows | None,
    resumed: Sequence[int],
    options: dict[str, Any],
) -> None:
    chosen = TrainOptions(
        **{"batch_size": 8, "epochs": 2, "learning_rate": 5e-3, "logging_steps": 2, **options}
    )
    rest = (chosen, kind, dtype, training)
    weights, result, log = outcome(tiny_model(family), tmp_path / "whole", None, *rest)
    places: list[tuple[str, Points]] = [("saving", Points(tmp_path / "points"))]
    places += [(f"resumed after {step}", Points(tmp_path / "points", step)) for step in resumed]
    for name, points in places:
        found, its_result, its_log = outcome(tiny_model(family), tmp_path / name, points, *rest)
        assert its_result == result, name
        assert its_log == log, name
        assert found.keys() == weights.keys()
        assert all(torch.equal(found[key], weights[key]) for key in weights), name


def test_a_state_file_keeps_what_it_was_given(tmp_path: Path) -> None:
    state = {
        "numbers": [1, 2.5, float("inf"), True, None, "text"],
        "tensors": {0: torch.arange(3, dtype=torch.uint8), 1: torch.tensor(0.1, dtype=torch.bfloat16)},
        "nested": {"dict": {"tensor": "no tensor"}, "empty": {}},
        "transposed": torch.arange(6.0).view(2, 3).T,
    }
    write_state(tmp_path, state)
    read = read_state(tmp_path)
    assert repr(read) == repr(state)
    assert [tensor.dtype for tensor in read["tensors"].values()] == [torch.uint8, torch.bfloat16]
    with pytest.raises(TypeError, match="nested/set: a set cannot be saved"):
        write_state(tmp_path, {"nested": {"set": {1}}})


def test_random_numbers_go_on_where_they_were(tmp_path: Path) -> None:
    def draw() -> list[float]:
        return [
            *[random.random(), random.gauss(0, 1)],
            *[float(np.random.rand()), float(np.random.randn())],
            *torch.rand(3).tolist(),
        ]

    draw()  # so that a second Gaussian number is waiting
    write_state(tmp_path, random_state())
    following = draw()
    assert draw() != following
    set_random_state(read_state(tmp_path))
    assert draw() == following
