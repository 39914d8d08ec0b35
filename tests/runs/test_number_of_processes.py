"""A run of several processes is the run of one: the same adapters up to rounding, and the same answers."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from process_group import learn_together
from safetensors.torch import load_file

from helpers import ANIMALS, COLORS, learn, write_config, write_task
from nlora.methods.registry import method_names
from nlora.runs.summary import read_summary

TinyModel = Callable[[str], Path]
pytestmark = pytest.mark.slow

# 11 examples in batches of 8: the last step has fewer examples than four processes have room for.
TRAIN = {"epochs": 1, "batch_size": 8, "learning_rate": 5e-3}
DROPOUT = {"r": 4, "alpha": 8, "dropout": 0.2}
# Every method, each with another way to train and score.
CASES: dict[str, dict[str, Any]] = {
    **{method: {"method": method} for method in method_names()},
    "inclora": {"method": "inclora", "train": TRAIN | {"batches": "random", "epochs": 2}},
    "ella": {"method": "ella", "train": TRAIN | {"micro_batch_size": 1}},
    # Its sliding window rules out packed batches.
    "olora": {"method": "olora", "model": "mistral", "train": TRAIN | {"micro_batch_size": 2}},
    "lwf": {"method": "lwf", "train": TRAIN | {"label_weights": "balanced", "micro_batch_size": 2}},
    "pertask": {
        "method": "pertask",
        "evaluate": {"decode": "generate", "batch_size": 2, "zero_shot": True},
        "train": TRAIN | {"max_target_tokens": 6},
    },
    "replay": {
        "method": "replay",
        "train": TRAIN | {"gradient_checkpointing": True},
        "evaluate": {"batch_size": 2, "general": {"max_characters": 3000}},
    },
    "replay beside a method": {
        "method": "nlora",
        "replay": {"memory": 5, "choose": "hardest", "share": 0.4},
        "lora": DROPOUT,
        "train": TRAIN | {"micro_batch_size": 2},
    },
    "mtl": {"method": "mtl", "train": TRAIN | {"batch_size": 3}},
    "seqlora": {
        "method": "seqlora",
        "train": TRAIN | {"epochs": 4, "early_stopping": {"patience": 1}, "learning_rate": 5e-2},
    },
    # AdamW divides by the size of the gradient. Where all of that is rounding, only the rate bounds the step.
    "seqft": {"method": "seqft", "train": TRAIN | {"learning_rate": 5e-5}},
    # The first steps of AdamW move all of B alike. What has moved most is then a matter of rounding.
    "lori": {
        "method": {"name": "lori", "share": 0.25, "unit": "rows", "calibration": 0.5},
        "train": TRAIN | {"epochs": 5},
    },
    "unclipped": {
        "method": {"name": "nlora", "weight": 1e-3, "clipped": False, "growth": 0.5},
        "train": TRAIN | {"micro_batch_size": 2, "max_grad_norm": 0.1},
    },
    "decoupled": {
        "method": {"name": "nlora", "weight": 1e-2, "apply": "decoupled"},
        "train": TRAIN | {"epochs": 2},
    },
    "dropout": {
        "method": "replay",
        "lora": DROPOUT | {"targets": "all-linear"},
        "train": TRAIN | {"micro_batch_size": 2, "learning_rate": 1e-3},
    },
    "dropout, padded": {"method": "inclora", "model": "mistral", "lora": DROPOUT},
    "t5": {"model": "t5", "train": TRAIN | {"learning_rate": 5e-5}},
}
# The same configurations, with the backbone sharded over the two processes.
SHARDED: dict[str, dict[str, Any]] = {
    "nlora": {
        "method": "nlora",
        "train": TRAIN | {"gradient_checkpointing": True, "micro_batch_size": 2},
        "evaluate": {"batch_size": 2, "general": {"max_characters": 3000}},
    },
    # Its sliding window rules out packed batches.
    "olora": {"method": "olora", "model": "mistral"},
    "lwf": {"method": "lwf", "evaluate": {"decode": "generate", "batch_size": 2, "zero_shot": True}},
    # Its input embedding is its head.
    "seqlora": {
        "method": "seqlora",
        "model": "gemma",
        "train": TRAIN | {"epochs": 4, "early_stopping": {"patience": 1}},
    },
}
CASES |= {f"sharded {case}": changes for case, changes in SHARDED.items()}
RESUMED = "sharded olora"
"""Its run of two processes learns the first task, and then goes on with both."""
if importlib.util.find_spec("bitsandbytes") is not None:  # the extra quant
    CASES["4bit"] = {"quantize": "4bit"}
OF_FOUR = ["ewc", "ella", "olora", "mtl", "lwf", "dropout"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_model: TinyModel) -> Path:
    """A folder with every case's run by 1, 2 and 4 processes: <case>/<processes>."""
    folder = tmp_path_factory.mktemp("processes")
    tasks = [write_task(folder, "colors", COLORS, 11, 7), write_task(folder, "animals", ANIMALS, 11, 7)]
    configs = {}
    for case, changes in CASES.items():
        (folder / case).mkdir()
        values = {"tasks": tasks, "train": TRAIN, "evaluate": {"batch_size": 2}} | changes
        configs[case] = write_config(folder / case, tiny_model(values.pop("model", "llama")), **values)
    for case, config in configs.items():
        learn(config, f"output_dir={folder / case / '1'}")
    for size, cases, launcher in ((2, list(CASES), "torchrun"), (4, OF_FOUR, "srun")):
        of_size = []
        for case in cases:
            overrides = [f"output_dir={folder / case / str(size)}"]
            if case.startswith("sharded"):
                overrides.append("fsdp=true")
            if case == RESUMED:
                of_size.append((configs[case], [*overrides, f"tasks={json.dumps(tasks[:1])}"]))
            of_size.append((configs[case], overrides))
        learn_together(size, of_size, folder / f"{size} processes", launcher)
    return folder


def tensors(run: Path) -> dict[str, torch.Tensor]:
    """Everything that a run's stages keep as tensors: adapters or weights, and a method's memory."""
    files = sorted((run / "outputs").rglob("*.safetensors"))
    return {f"{f.relative_to(run)}/{key}": value for f in files for key, value in load_file(f).items()}


def predictions(run: Path) -> list[str]:
    return [file.read_text() for file in sorted((run / "outputs").glob("*/predict_eval_predictions.jsonl"))]


def replayed(run: Path) -> list[list[int]]:
    """Which examples each stage keeps for later ones, if losses decide that."""
    return [json.loads(file.read_text())["examples"] for file in sorted(run.glob("outputs/*/replay.json"))]


@pytest.mark.parametrize(("case", "size"), [*((case, 2) for case in CASES), *((case, 4) for case in OF_FOUR)])
def test_any_number_of_processes_gives_the_same_adapters_and_answers(
    runs: Path, case: str, size: int
) -> None:
    alone, together = runs / case / "1", runs / case / str(size)
    expected, found = tensors(alone), tensors(together)
    assert expected.keys() == found.keys()
    assert expected
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-5, msg=name)
    assert predictions(together) == predictions(alone)
    assert replayed(together) == replayed(alone)
    one, several = read_summary(alone), read_summary(together)
    assert (several.R, several.zero_shot, several.status) == (one.R, one.zero_shot, "complete")
    assert several.versions["processes"] == str(size)
    losses = [[scores.loss for scores in summary.general if scores] for summary in (one, several)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert bool(losses[0]) == (case in ("replay", "sharded nlora"))


def test_each_process_holds_its_share_of_a_sharded_backbone(runs: Path) -> None:
    """A half of every weight, and nothing whole. Each sharded run was started once, and one of them twice."""
    for rank in range(2):
        file = runs / "2 processes" / f"held-{rank}.jsonl"
        held = [json.loads(line) for line in file.read_text().splitlines()]
        assert len(held) == len(SHARDED) + 1
        for mine, everything in held:
            assert mine == everything / 2
