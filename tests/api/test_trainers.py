"""One task learned in four training loops (examples/) and by `nlora run`: the same adapter each time."""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from transformers.utils import logging

from helpers import ANIMALS, COLORS, learn, write_config, write_task
from nlora.config.load import load_config
from nlora.data.load import load_tasks
from nlora.data.prompts import prompt
from nlora.models.lora_factors import AdapterState, load_factors

EXAMPLES = Path(__file__).parents[2] / "examples"
SEED = 3


@dataclass(frozen=True)
class Learned:
    """A run of two tasks, and the second task's file for the examples."""

    model: Path
    first: Path
    second: Path
    data: Path


@pytest.fixture(scope="session")
def learned(tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[[str], Path]) -> Learned:
    """46 examples in batches of 8: the last optimizer step has one and a half micro-batches of 4."""
    folder, model = tmp_path_factory.mktemp("learned"), tiny_model("llama")
    tasks = [
        write_task(folder / "data", "colors", COLORS),
        write_task(folder / "data", "animals", ANIMALS, 46),
    ]
    config = write_config(
        folder,
        model,
        tasks=tasks,
        method={"name": "nlora", "weight": 1e-2},
        train={"epochs": 1, "batch_size": 8, "learning_rate": 1e-2, "batches": "random"},
        seed=SEED,
    )
    learn(config)
    loaded = load_config(config)
    task = load_tasks(loaded.config, base_folder=loaded.base_folder)[1]
    rows = [{"prompt": prompt(task, e), "completion": f" {e.label}"} for e in task.train]
    (folder / "animals.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    outputs = folder / "run" / "outputs"
    return Learned(
        model, outputs / "1-colors/adapter", outputs / "2-animals/adapter", folder / "animals.jsonl"
    )


@pytest.mark.filterwarnings("ignore")  # of the other trainers
@pytest.mark.parametrize("name", ["transformers_trainer", "trl_sft", "pytorch_loop", "accelerate_loop"])
def test_each_loop_gives_the_adapter_of_the_run(
    name: str, learned: Learned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "trl_sft":
        pytest.importorskip("trl")
    out = tmp_path / "adapter"
    options = f"--weight 1e-2 --rank 4 --batch-size 8 --learning-rate 1e-2 --seed {SEED}".split()
    places = ["--model", learned.model, "--data", learned.data, "--after", learned.first, "--out", out]
    monkeypatch.setattr("sys.argv", [name, *map(str, places), *options])
    monkeypatch.syspath_prepend(EXAMPLES)
    runpy.run_path(str(EXAMPLES / f"{name}.py"))
    logging.disable_progress_bar()
    difference = _difference(load_factors(out), load_factors(learned.second))
    assert difference < 1e-5
    print(f"{name}: {difference:.0e}")


def _difference(one: AdapterState, other: AdapterState) -> float:
    """The largest difference of any entry of A and B."""
    assert one.keys() == other.keys()
    pairs = [(x, y) for name, f in one.items() for x, y in ((f.A, other[name].A), (f.B, other[name].B))]
    return max(float((x - y).abs().max()) for x, y in pairs)
