"""A half-trained task of several processes resumes: with as many to the same bits, with others up to rounding."""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from process_group import learn_together
from safetensors.torch import load_file

from helpers import ANIMALS, COLORS, write_config, write_task
from nlora.api.learn import learn as learn_run
from nlora.config.load import load_config
from nlora.runs.events import Event, Progress

TinyModel = Callable[[str], Path]
pytestmark = pytest.mark.slow

# 19 examples in batches of 8: the last of the 3 steps of an epoch has no examples for all of four processes.
STEP = 5  # of 9; in the middle of the second epoch
TRAIN = {
    "epochs": 3,
    "batch_size": 8,
    "micro_batch_size": 2,
    "learning_rate": 5e-3,
    "logging_steps": 2,
    "schedule": "cosine",
    "save_every": 1,
}
CASES: dict[str, dict[str, Any]] = {
    "random": {"train": TRAIN | {"batches": "random"}},
    # Padded batches, early stopping that lasts, and a method with a memory.
    "by_length": {
        "model": "mistral",
        "method": "ewc",
        "train": TRAIN | {"early_stopping": {"patience": 3}},
    },
    "dropout": {"lora": {"r": 4, "alpha": 8, "dropout": 0.1}},
}
OTHERS = [*((case, size) for case in ("random", "by_length") for size in (1, 4)), ("dropout", 1)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_model: TinyModel) -> Path:
    """A folder with, for each case, <case>/whole and <case>/half by 2 processes, and half, resumed by 2 and by 4."""
    folder = tmp_path_factory.mktemp("together")
    tasks = [write_task(folder, "colors", COLORS, 19, 7), write_task(folder, "animals", ANIMALS, 19, 7)]
    by_two: list[Any] = []
    by_four: list[Any] = []
    for case, changes in CASES.items():
        (folder / case).mkdir()
        values = {"tasks": tasks, "train": TRAIN, "evaluate": {"batch_size": 2}} | changes
        config = write_config(folder / case, tiny_model(values.pop("model", "llama")), **values)
        whole, half, two, four = (
            [f"output_dir={folder / case / name}"] for name in ("whole", "half", "2", "4")
        )
        by_two += [(config, whole), (config, half, STEP), (config, two, STEP), (config, two)]
        by_four += [(config, four)] if (case, 4) in OTHERS else []
    learn_together(2, by_two, folder / "2 processes", "torchrun")
    for case in CASES:
        for size in (1, 4):
            shutil.copytree(folder / case / "half", folder / case / str(size))
    learn_together(4, by_four, folder / "4 processes", "torchrun")
    return folder


def notes_alone(folder: Path) -> list[str]:
    """What one process says when it learns the rest of a half-trained run, <case>/1."""
    if (folder / "1.json").exists():
        return list(json.loads((folder / "1.json").read_text()))
    events: list[Event] = []
    learn_run(load_config(folder / "config.yaml", [f"output_dir={folder / '1'}"]), Progress(events.append))
    notes = [event.text for event in events if event.kind == "note"]
    (folder / "1.json").write_text(json.dumps(notes))
    return notes


def tensors(run: Path) -> dict[str, torch.Tensor]:
    files = sorted((run / "outputs").rglob("*.safetensors"))
    return {f"{f.relative_to(run)}/{key}": value for f in files for key, value in load_file(f).items()}


def result(run: Path, name: str = "train_results") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / f"outputs/2-animals/{name}.json").read_text())
    return found


@pytest.mark.parametrize("case", CASES)
def test_as_many_processes_end_with_the_same_files(
    runs: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    assert [path.name for path in sorted((runs / case / "half/resume").glob("2-animals/*"))] == [
        "step-4",
        "step-5",
    ]
    assert importlib.import_module("kill").differences(runs / case / "whole", runs / case / "2") == []


@pytest.mark.parametrize(("case", "size"), OTHERS)
def test_another_number_of_processes_ends_with_the_same_numbers(runs: Path, case: str, size: int) -> None:
    if size == 1:
        beginning = f"stage 2: animals resumes after step {STEP} of "
        assert any(note.startswith(beginning) for note in notes_alone(runs / case))
    whole, found = runs / case / "whole", runs / case / str(size)
    expected, others = tensors(whole), tensors(found)
    assert expected.keys() == others.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(others[name], tensor, rtol=1e-5, atol=1e-5, msg=name)
    predictions = "outputs/2-animals/predict_eval_predictions.jsonl"
    assert (found / predictions).read_text() == (whole / predictions).read_text()
    sums = [
        {key: result(run)[key] for key in ("train_loss", "train_padding_share")} for run in (whole, found)
    ]
    assert sums[1] == pytest.approx(sums[0], rel=1e-5)
    assert (sums[0]["train_padding_share"] > 0) == (case == "by_length")
    # The last entry has times, and `epoch` counts micro-batches.
    logs = [
        [{key: entry[key] for key in ("step", "loss", "penalty", "learning_rate")} for entry in history[:-1]]
        for history in (result(run, "trainer_state")["log_history"] for run in (whole, found))
    ]
    for before, after in zip(*logs, strict=True):
        assert after == pytest.approx(before, rel=1e-4, abs=1e-6)
    assert any(entry["penalty"] > 0 for entry in logs[0])
