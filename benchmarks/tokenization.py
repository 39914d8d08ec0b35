"""What the token cache saves: time and memory of turning a task's examples into ids.

    python benchmarks/tokenization.py                             # about ten minutes
    python benchmarks/tokenization.py --examples 250 500 --rounds 7
    python benchmarks/tokenization.py --check --rounds 2          # about four minutes

`--check` times the whole of `nlora check` instead, imports included, on 200,000 examples with two labels and on 10,000
with a thousand: with an empty cache (cold) and a filled one (warm), with the process's peak memory and the size of the
cache. CPU seconds (of all cores together) are meaningful on a busy machine, too. It also runs with the sources of an
earlier nlora (PYTHONPATH), to compare.

Each turn is a separate process, like a second run: without a cache, with an empty one (the examples are tokenized and
written), and with a filled one. Imports and loading the tokenizer do not count. Memory is the largest growth of the
process.

The texts are those of a data set, repeated, each with a number in front, so that no two are equal.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measure
from nlora.data import token_cache
from nlora.data.task import Example, Task
from nlora.data.token_cache import TokenCache
from nlora.data.tokenize import ExampleTokenizer
from nlora.models.backbone import load_tokenizer
from nlora.training.peak_memory import peak_memory_bytes
from one_line import one_line_errors

CHECKS = {
    "2 labels": (200_000, ("negative", "positive")),
    "1,000 labels": (10_000, tuple(f"c{i}" for i in range(1000))),
}
"""Examples and labels of the sets that `--check` is about."""


def many(task: Task, count: int) -> list[Example]:
    """Training examples, as many as wanted."""
    pool = task.train
    return [
        Example(str(i), f"{i} {pool[i % len(pool)].sentence}", pool[i % len(pool)].label)
        for i in range(count)
    ]


def encode(options: argparse.Namespace) -> dict[str, Any]:
    """One turn: seconds and memory of one set of examples, in this process."""
    token_cache.LEAST_CHARACTERS = 1  # to see from where on it pays
    task = measure.read_task(options.data, options.dataset)
    examples = many(task, options.examples[0])
    tokenizer = load_tokenizer(options.model)
    cache = TokenCache(tokenizer, options.cache) if options.cache else None
    encoder = ExampleTokenizer(
        tokenizer, encoder_decoder=False, max_source_tokens=512, max_target_tokens=50, cache=cache
    )
    before_bytes = peak_memory_bytes()
    begin, cpu_begin = time.perf_counter(), time.process_time()
    rows = encoder.encode(task, examples)
    seconds, cpu_seconds = time.perf_counter() - begin, time.process_time() - cpu_begin
    grown_bytes = peak_memory_bytes() - before_bytes
    begin = time.perf_counter()
    tokens = sum(map(measure.tokens_of, rows))
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "grown_bytes": grown_bytes,
        "read_seconds": time.perf_counter() - begin,
        "tokens": tokens,
    }


def turns(options: argparse.Namespace, count: int) -> dict[str, list[dict[str, Any]]]:
    """The figures of every turn of each contestant."""
    more = ["--model", options.model, "--data", options.data, "--examples", str(count)]
    more += ["--dataset", options.dataset] if options.dataset else []

    def turn(cache: Path | None) -> dict[str, Any]:
        given = ["--cache", str(cache)] if cache else []
        return measure.alone(Path(__file__), ["--alone", *more, *given])

    with tempfile.TemporaryDirectory() as folder:
        kept, empty = Path(folder) / "kept", Path(folder) / "empty"
        turn(kept)

        def first(_: int) -> dict[str, Any]:
            shutil.rmtree(empty, ignore_errors=True)
            return turn(empty)

        contestants: dict[str, Callable[[int], dict[str, Any]]] = {
            "no cache": lambda _: turn(None),
            "first run": first,
            "later run": lambda _: turn(kept),
        }
        return measure.interleave(contestants, options.rounds)


def write_run(folder: Path, options: argparse.Namespace, count: int, labels: tuple[str, ...]) -> Path:
    """A run over one task of so many examples, and the file that describes it."""
    from nlora.models.backbone import BUILTIN_MODEL, builtin_model_folder

    examples = many(measure.read_task(options.data, options.dataset), count)
    for split, rows in (("train", examples), ("test", examples[:1000])):
        with (folder / f"{split}.jsonl").open("w", encoding="utf-8") as file:
            for i, example in enumerate(rows):
                row = {"sentence": example.sentence, "label": labels[i % len(labels)]}
                file.write(json.dumps(row) + "\n")
    task = {
        "name": "texts", "train": str(folder / "train.jsonl"), "test": str(folder / "test.jsonl"),
        "instruction": "Which label fits? Choose one from the option.", "labels": list(labels),
    }  # fmt: skip
    # The model's folder, since tokens are to be kept in another one than its own.
    model = str(builtin_model_folder()) if options.model == BUILTIN_MODEL else options.model
    run = {
        "name": "texts",
        "model": model,
        "tasks": [task],
        "method": "inclora",
        "output_dir": str(folder / "run"),
    }
    path = folder / "run.yaml"  # JSON is YAML, too
    path.write_text(json.dumps(run | {"train": {"max_source_tokens": 8192}}), encoding="utf-8")
    return path


def check(run: Path, kept: Path) -> dict[str, Any]:
    """One `nlora check`: its seconds, its peak of memory, and the size of the tokens that are kept then."""
    begin = time.perf_counter()
    command = [sys.executable, "-m", "nlora", "check", str(run)]
    process = subprocess.Popen(
        command, env=os.environ | {"NLORA_CACHE": str(kept)}, stdout=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit("nlora check failed")
    return {
        "seconds": time.perf_counter() - begin,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_bytes": usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        "kept_bytes": sum(file.stat().st_size for file in (kept / "tokens").iterdir()),
    }


def report_checks(options: argparse.Namespace) -> None:
    """One row per set, cold and warm."""
    rows, figures = [], {}
    for name, (count, labels) in CHECKS.items():
        with tempfile.TemporaryDirectory() as folder:
            run, kept = write_run(Path(folder), options, count, labels), Path(folder) / "kept"
            turns: dict[str, list[dict[str, Any]]] = {"cold": [], "warm": []}
            for _ in range(options.rounds):
                shutil.rmtree(kept, ignore_errors=True)
                turns["cold"].append(check(run, kept))
                turns["warm"].append(check(run, kept))
        figures[name] = turns
        for how, results in turns.items():
            rows.append([
                f"{count:,}", name, how,
                *(measure.Spread.of([turn[key] for turn in results]) for key in ("seconds", "cpu_seconds")),
                measure.mib(max(turn["peak_bytes"] for turn in results)),
                f"{results[0]['kept_bytes'] / 1e6:.1f} MB",
            ])  # fmt: skip
    header = ["examples", "labels", "", "seconds", "of processors", "peak memory", "kept on disk"]
    shown = argparse.Namespace(**{k: v for k, v in vars(options).items() if k not in {"cache", "examples"}})
    measure.report("tokenize --check", shown, {"checks": figures}, measure.table(header, rows))


@one_line_errors
def main() -> None:
    """One row per number of examples and contestant."""
    parser = measure.parser(__doc__)
    parser.add_argument("--model", default="smollm2", help="whose tokenizer (default: smollm2)")
    parser.add_argument("--data", default=measure.default_data(), help="folder in the released layout")
    parser.add_argument("--dataset", help="one data set of it (default: agnews; builtin: reuters)")
    parser.add_argument("--examples", type=int, nargs="+", default=[300, 1000, 10_000, 100_000])
    parser.add_argument("--check", action="store_true", help="time `nlora check` on large sets instead")
    parser.add_argument("--alone", action="store_true", help="one turn, in this process")
    parser.add_argument("--cache", type=Path, help="with --alone: where the tokens are kept")
    parser.set_defaults(rounds=3)
    options = parser.parse_args()
    measure.start(options)
    if options.alone:
        measure.write_json(options.json, encode(options))
        return
    if options.check:
        report_checks(options)
        return
    figures = {str(count): turns(options, count) for count in options.examples}
    rows = []
    for count, by_name in figures.items():
        plain = [turn["seconds"] for turn in by_name["no cache"]]
        for name, results in by_name.items():
            seconds = [turn["seconds"] for turn in results]
            rows.append([
                count, name, measure.Spread.of(seconds), measure.ratios(plain, seconds),
                measure.Spread.of([turn["cpu_seconds"] for turn in results]),
                measure.mib(max(turn["grown_bytes"] for turn in results)),
                measure.Spread.of([turn["read_seconds"] for turn in results]),
            ])  # fmt: skip
    header = [
        "examples",
        "",
        "seconds",
        "times as fast",
        "CPU seconds",
        "memory",
        "seconds to go through all",
    ]
    shown = argparse.Namespace(**{k: v for k, v in vars(options).items() if k != "cache"})
    measure.report("tokenize", shown, {"turns": figures}, measure.table(header, rows))


if __name__ == "__main__":
    main()
