"""How far a run's adapters are off when it is computed in another way that should not matter.

    python benchmarks/reliability.py            # a table in Markdown; two to five minutes on 2 cores

Rows: packed or padded batches (tiny random models, float32, no dropout), with a whole batch or with micro-batches.
Columns: numbers of processes. Every entry is the largest difference of a number in any adapter from the run by one
process with whole batches; the last one of a row says whether all predictions are the same.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import yaml
from safetensors.torch import load_file

from tiny_families import tiny_folder

MODELS = {"packed": "llama", "padded": "mistral"}  # a sliding window rules packing out
BATCHES = {"whole": [], "micro-batches of 2": ["train.micro_batch_size=2"]}
WAYS = {f"{n} process{'es' if n > 1 else ''}": ["--processes", str(n)] for n in (1, 2, 4)}
"""Name -> further arguments of `nlora run`. The first one is the reference."""
_LABELS = {"colors": ("red", "green", "blue"), "animals": ("fox", "dog", "ox")}


def write_config(folder: Path, family: str) -> Path:
    """A run of two tasks of 21 examples in batches of 8, so that each epoch's last batch is smaller."""
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


def run(config: Path, folder: Path, arguments: Sequence[str]) -> Path:
    """`nlora run` into a folder, which is returned."""
    command = [sys.executable, "-m", "nlora", "run", str(config), f"output_dir={folder}", *arguments]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return folder


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
    print(f"| batches | | {' | '.join(WAYS)} | predictions |")
    print(f"| --- | --- |{' ---: |' * len(WAYS)} --- |")
    for batches, family in MODELS.items():
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            config = write_config(folder, family)
            reference = None
            for i, (how, overrides) in enumerate(BATCHES.items()):
                runs = [
                    run(config, folder / f"{i}-{j}", [*overrides, *arguments])
                    for j, arguments in enumerate(WAYS.values())
                ]
                reference = reference or runs[0]
                same = all(answers(folder) == answers(reference) for folder in runs)
                entries = " | ".join(f"{off(reference, folder):.0e}" for folder in runs)
                print(
                    f"| {batches} | {how} | {entries} | {'the same' if same else 'DIFFERENT'} |", flush=True
                )


if __name__ == "__main__":
    main()
