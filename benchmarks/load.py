"""Runs that are large in one direction each: time and peak memory, on a tiny random model.

    python benchmarks/load.py                          # all parts, about a quarter of an hour on 2 cores
    python benchmarks/load.py stages labels            # some of them
    python benchmarks/load.py --scale 0.01 examples    # a hundredth of the size

stages    15 tasks in one run: seconds of the processor and resident memory for each stage
examples  one task of 200,000 examples
text      examples of 100,000 characters
labels    one task with 1,000 labels that begin alike, 160 examples to train on and 500 to test
compare   `nlora compare` of 1,000 runs: 100 variants with 10 seeds each

Each part is a process of its own. The model is tiny, so what is measured is nlora's own work, not the model's.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import measure
from one_line import one_line_errors
from tiny_families import tiny_folder

TEXT = "the quick brown fox jumps over the lazy dog and runs to the market to sell its stock"
WORDS = TEXT.split()


def write_config(folder: Path, tasks: list[dict[str, Any]], **train: Any) -> Path:
    """A run of these tasks on a tiny LLaMA."""
    tiny_folder("llama", folder / "tiny")
    values = {
        "name": "load",
        "model": str(folder / "tiny"),
        "tasks": tasks,
        "method": "nlora",
        "lora": {"r": 4, "alpha": 8, "dropout": 0.0},
        "train": {"epochs": 1, "batch_size": 64, "learning_rate": 1e-3, **train},
        "evaluate": {"batch_size": 64},
        "output_dir": str(folder / "run"),
    }
    path = folder / "config.yaml"
    path.write_text(json.dumps(values), encoding="utf-8")  # JSON is YAML, too
    return path


def write_task(
    folder: Path, name: str, train: int, test: int, labels: list[str], words: int = 20
) -> dict[str, Any]:
    """A task whose texts are all different."""
    task: dict[str, Any] = {"name": name, "instruction": "Which one is it?", "labels": labels}
    for split, count in (("train", train), ("test", test)):
        task[split] = str(folder / f"{name}-{split}.jsonl")
        with Path(task[split]).open("w", encoding="utf-8") as file:
            for i in range(count):
                text = " ".join([split, str(i), *(WORDS[(i + j) % len(WORDS)] for j in range(words))])
                file.write(json.dumps({"sentence": text, "label": labels[i % len(labels)]}) + "\n")
    return task


def resident_bytes() -> int:
    """Of this process now; 0 where the system does not say."""
    status = Path("/proc/self/statm")
    return int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if status.is_file() else 0


def stages(folder: Path, scale: float) -> dict[str, Any]:
    """Seconds of the processor for each stage, and resident memory after it."""
    import nlora

    count = max(int(2000 * scale), 8)
    tasks = [write_task(folder, f"task{k}", count, count // 2, ["low", "high"]) for k in range(1, 16)]
    config = write_config(folder, tasks)
    found: list[tuple[float, int]] = []
    begin = time.process_time()  # fair on a busy machine, too

    def on_event(event: Any) -> None:
        if event.kind == "stage_done":
            gc.collect()  # what is held, not what is about to go
            found.append((time.process_time() - begin, resident_bytes()))

    nlora.run(str(config), on_event=on_event)
    ends = [0.0, *(seconds for seconds, _ in found)]
    answers = sorted(
        folder.glob("run/outputs/*/predict_eval_predictions.jsonl"), key=lambda f: f.stat().st_mtime
    )
    return {
        "stage_seconds": [b - a for a, b in pairwise(ends)],
        "resident_bytes": [size for _, size in found],
        "answer_bytes": [file.stat().st_size for file in answers],
    }


def examples(folder: Path, scale: float) -> dict[str, Any]:
    count = int(200_000 * scale)
    return learn(
        write_config(folder, [write_task(folder, "many", count, max(count // 10, 4), ["low", "high"])])
    )


def text(folder: Path, scale: float) -> dict[str, Any]:
    words = int(100_000 * scale / 4.9)
    task = write_task(folder, "long", 64, 32, ["low", "high"], words=words)
    return learn(write_config(folder, [task], batch_size=8))


def labels(folder: Path, scale: float) -> dict[str, Any]:
    names = [f"c{i}" for i in range(max(int(1000 * scale), 2))]
    task = write_task(folder, "labels", max(int(160 * scale), 16), max(int(500 * scale), 4), names)
    return learn(write_config(folder, [task], batch_size=16, max_source_tokens=8192))


def compare(folder: Path, scale: float) -> dict[str, Any]:
    from nlora.config.schema import Config
    from nlora.runs.summary import StageRecord, summary_of, write_summary

    for variant in range(int(100 * scale)):
        for seed in range(10):
            values = {"tasks": ["a", "b"], "name": f"v{variant}", "seed": seed, "method": "inclora"}
            records = [
                StageRecord(
                    stage=k + 1,
                    task="ab"[k],
                    scores={"a": 50 + seed, "b": 40 + variant % 50} if k else {"a": 60},
                    train_seconds=1,
                    evaluate_seconds=1,
                    train_samples_per_second=1,
                )
                for k in range(2)
            ]
            run = folder / "runs" / f"v{variant}-seed{seed}"
            run.mkdir(parents=True)
            write_summary(run, summary_of(Config.model_validate(values), records))
    return command("compare", str(folder / "runs"))


def learn(config: Path) -> dict[str, Any]:
    return command("run", str(config))


_WAIT = """
import json, os, subprocess, sys, time
begin = time.perf_counter()
process = subprocess.Popen([sys.executable, "-m", "nlora", *sys.argv[1:]], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
unit = 1 if sys.platform == "darwin" else 1024
print(json.dumps({"status": status, "seconds": time.perf_counter() - begin,
                  "cpu_seconds": usage.ru_utime + usage.ru_stime, "peak_bytes": usage.ru_maxrss * unit}))
"""
"""In a small process, because the peak of a process is never below that of the one that started it."""


def command(*arguments: str) -> dict[str, Any]:
    """An `nlora` command: its seconds, with imports, and its peak of memory."""
    done = subprocess.run(
        [sys.executable, "-c", _WAIT, *arguments], check=True, stdout=subprocess.PIPE, text=True
    )
    found: dict[str, Any] = json.loads(done.stdout)
    if found.pop("status"):
        raise SystemExit(f"nlora {arguments[0]} failed")
    return found


PARTS: dict[str, Callable[[Path, float], dict[str, Any]]] = {
    "stages": stages,
    "examples": examples,
    "text": text,
    "labels": labels,
    "compare": compare,
}


@one_line_errors
def main(arguments: list[str] | None = None) -> None:
    """One table of the commands, and one of the stages."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)} (default: all)")
    parser.add_argument("--scale", type=float, default=1.0, help="of all sizes (default: 1)")
    parser.add_argument("--threads", type=int, help="threads of torch (default: its own choice)")
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")
    parser.add_argument("--alone", action="store_true", help="one part, in this process")
    options = parser.parse_args(arguments)
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}; choose from {', '.join(PARTS)}")
    measure.start(options)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["NLORA_CACHE"] = str(Path(folder) / "cache")  # nothing is tokenized yet
        if options.alone:
            measure.write_json(options.json, PARTS[options.parts[0]](Path(folder), options.scale))
            return
        figures = {}
        for part in options.parts or PARTS:
            print(part, file=sys.stderr, flush=True)
            given = ["--alone", part, "--scale", str(options.scale)]
            figures[part] = measure.alone(Path(__file__), given)
    rows = [
        [
            part,
            f"{found['seconds']:.1f}",
            f"{found['cpu_seconds']:.1f}",
            measure.mib(found["peak_bytes"]),
        ]
        for part, found in figures.items()
        if part != "stages"
    ]
    tables = [measure.table(["part", "seconds", "of processors", "peak memory"], rows)] if rows else []
    if "stages" in figures:
        columns = [figures["stages"][key] for key in ("stage_seconds", "resident_bytes", "answer_bytes")]
        lines = [
            [k, f"{seconds:.1f}", measure.mib(resident), f"{answers / 1e6:.2f} MB"]
            for k, (seconds, resident, answers) in enumerate(zip(*columns, strict=True), start=1)
        ]
        tables.append(
            measure.table(
                ["stage", "seconds of processors", "resident after it", "its file of answers"], lines
            )
        )
    measure.report("load", options, figures, *tables)


if __name__ == "__main__":
    main()
