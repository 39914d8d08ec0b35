"""How far a run's adapters are off when it is computed in another way that should not matter.

    python benchmarks/reliability.py            # a table in Markdown; a minute on 2 cores

Rows: packed or padded batches (tiny random models, float32, no dropout), with a whole batch or with micro-batches, not
stopped or killed in the second task and resumed by as many processes.
Columns: numbers of processes. Every entry is the largest difference of a number in any adapter from the run by one
process with whole batches; the last one of a row says whether all predictions are the same.
"""

from __future__ import annotations

import itertools
import json
import signal
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import kill  # before torch, which it keeps from telling of processes that are gone

# isort: split
import torch
import yaml
from safetensors.torch import load_file

from forks import forked, group
from nlora.models.quiet_bars import quiet_bars
from tiny_families import tiny_folder

MODELS = {"packed": "llama", "padded": "mistral"}  # a sliding window rules packing out
BATCHES = {"whole": [], "micro-batches of 2": ["train.micro_batch_size=2"]}
ENDINGS = {"not stopped": False, "resumed": True}
COUNTS = {f"{n} process{'es' if n > 1 else ''}": n for n in (1, 2, 4)}
KILLED_BEFORE = 11
"""The optimizer step of a run before which it is killed: the fifth of the second task, in its second epoch."""
_LABELS = {"colors": ("red", "green", "blue"), "animals": ("fox", "dog", "ox")}


def write_config(folder: Path, family: str) -> Path:
    """A run of two tasks of 21 examples in batches of 8, so that each epoch's last batch is smaller."""
    with quiet_bars():
        tiny_folder(family, folder / "model")
    tasks = []
    for name, labels in _LABELS.items():
        for split, count in (("train", 21), ("test", 12)):
            rows = [
                {"sentence": f"the {labels[i % 3]} thing number {i} of {split}", "label": labels[i % 3]}
                for i in range(count)
            ]
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / f"{name}-{split}.jsonl").write_text(lines)
        files = {split: str(folder / f"{name}-{split}.jsonl") for split in ("train", "test")}
        tasks.append({"name": name, "instruction": "Which word?", "labels": list(labels), **files})
    values = {
        "name": "reliability",
        "model": str(folder / "model"),
        "tasks": tasks,
        "method": {"name": "nlora", "weight": 1e-3},
        "lora": {"r": 4, "alpha": 8, "dropout": 0.0},
        "train": {"epochs": 2, "batch_size": 8, "learning_rate": 5e-3},
        "output_dir": str(folder / "run"),
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    return folder / "config.yaml"


def run(config: Path, folder: Path, processes: int, overrides: Sequence[str], *, is_resumed: bool) -> Path:
    """Learn into a folder, which is returned. is_resumed: the main process is killed in the second task."""

    def learn(dies: bool) -> Callable[[int], None]:
        def work(rank: int) -> None:
            if dies and rank == 0:
                die_before_step(KILLED_BEFORE)
            kill.learn(config, folder, 1, overrides)

        return work

    if is_resumed:
        statuses = group(processes, learn(dies=True))
        if statuses[0] != -signal.SIGKILL or not (folder / "resume/2-animals/step-4").is_dir():
            raise RuntimeError(f"{folder}: no half-trained task; the processes ended with {statuses}")
    if any(statuses := group(processes, learn(dies=False))):
        raise RuntimeError(f"{folder}: the processes ended with {statuses}")
    return folder


def die_before_step(number: int) -> None:
    """Die before the given optimizer step of this process, from 1."""
    steps = itertools.count(1)
    step = torch.optim.AdamW.step

    def step_or_die(*args: Any, **kwargs: Any) -> Any:
        if next(steps) == number:
            kill.die()
        return step(*args, **kwargs)

    torch.optim.AdamW.step = step_or_die  # type: ignore[method-assign]


def off(one: Path, other: Path) -> float:
    """The largest difference between the adapters of two runs."""
    files = sorted(one.glob("outputs/*/adapter/*.safetensors"))
    pairs = [(load_file(file), load_file(other / file.relative_to(one))) for file in files]
    return max(float((b[key] - tensor).abs().max()) for a, b in pairs for key, tensor in a.items())


def answers(folder: Path) -> list[str]:
    """The predictions of every stage of a run."""
    return [file.read_text() for file in sorted(folder.glob("outputs/*/predict_eval_predictions.jsonl"))]


def main() -> None:
    """Print the table."""
    print(f"| batches | | | {' | '.join(COUNTS)} | predictions |")
    print(f"| --- | --- | --- |{' ---: |' * len(COUNTS)} --- |")
    for batches, family in MODELS.items():
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            config = folder / "config.yaml"
            if forked(lambda: write_config(folder, family)):  # noqa: B023 (called at once)
                raise RuntimeError("the configuration could not be written")
            reference = None
            for i, ((how, overrides), (ending, is_resumed)) in enumerate(
                itertools.product(BATCHES.items(), ENDINGS.items())
            ):
                runs = [
                    run(config, folder / f"{i}-{number}", number, overrides, is_resumed=is_resumed)
                    for number in COUNTS.values()
                ]
                reference = reference or runs[0]
                same = all(answers(folder) == answers(reference) for folder in runs)
                entries = " | ".join(f"{off(reference, folder):.0e}" for folder in runs)
                told = "the same" if same else "DIFFERENT"
                print(f"| {batches} | {how} | {ending} | {entries} | {told} |", flush=True)


if __name__ == "__main__":
    main()
