"""Runs that are killed at random moments: does the same command end with the files of a run that was not?

    python benchmarks/kill.py --kills 300
    python benchmarks/kill.py --kills 300 --processes 2    # two share each run, and either of them is killed

A run of two tasks on a tiny random model is started in one process after another. Each kills itself (SIGKILL) at a
random moment, until one comes through; then the next run begins. Every second process dies just before a random one of
the things that it does: writing, renaming, flushing or removing a file, a micro-batch, an optimizer step. The others
die after a random time, wherever they are. Each run is compared with one that was not killed, file by file, times
aside. Processes are forks of this one, which has imported everything.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import re
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

os.environ.setdefault(
    "TORCH_CPP_LOG_LEVEL", "FATAL"
)  # else torch tells of each lost connection in twenty lines
import nlora.sweeps.preload  # noqa: F401  (before anything is forked)
from forks import forked, group
from nlora.models.quiet_bars import quiet_bars
from nlora.runs.checksums import CHECKSUM_FILE
from nlora.runs.layout import STAGE_FILE
from tiny_families import tiny_folder

LABELS = {"colors": ("red", "green", "blue"), "animals": ("fox", "dog", "ox")}
TIMES = re.compile(r"seconds|runtime|per_second|memory")
"""Keys of JSON files whose values differ from process to process."""
LEFT_OUT = re.compile(r"\.lock|logs/.*|damaged/.*")
_SHARE = 4
"""A process dies within this part of what a whole run does or takes, so that most runs are killed several times."""


def write_config(folder: Path, answers: Mapping[str, tuple[str, str, str]] = LABELS) -> Path:
    """The model, the data and the configuration. answers: the labels of each task."""
    with quiet_bars():
        tiny_folder("llama", folder / "model")
    tasks = []
    for name, labels in answers.items():
        for split, count in (("train", 21), ("test", 6)):
            rows = [
                {"sentence": f"the {labels[i % 3]} thing, {'very ' * (i % 5)}{i}", "label": labels[i % 3]}
                for i in range(count)
            ]
            (folder / f"{name}-{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        files = {split: str(folder / f"{name}-{split}.jsonl") for split in ("train", "test")}
        tasks.append({"name": name, "instruction": "Which word?", "labels": list(labels), **files})
    values = {
        "model": str(folder / "model"),
        "tasks": tasks,
        "method": {"name": "nlora", "weight": 1e-3},
        "lora": {"r": 4, "alpha": 8, "dropout": 0.1},
        "train": {
            "epochs": 3,
            "batch_size": 8,
            "micro_batch_size": 4,
            "learning_rate": 5e-3,
            "logging_steps": 2,
        },
        "seed": 3,
        "output_dir": str(folder / "run"),
    }
    path = folder / "config.yaml"
    path.write_text(json.dumps(values))  # JSON is YAML
    return path


def learn(
    config: Path, run: Path, save_every: int, overrides: Sequence[str] = (), *, repair: bool = False
) -> None:
    """The whole run, or what is left of it, in this process."""
    import torch

    import nlora

    torch.set_num_threads(1)
    loaded = nlora.load_config(config, [f"output_dir={run}", f"train.save_every={save_every}", *overrides])
    nlora.run(loaded, on_event=lambda event: None, repair=repair)


def on_each_event(run: Path, call: Callable[[], None]) -> None:
    """Call this before everything that this process does to the run's files, to its weights, or in a micro-batch."""
    import torch

    from nlora.training.penalized_trainer import PenalizedTrainer

    names = {"os.rename", "os.remove", "os.rmdir", "os.mkdir"}
    inside = str(run)

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        writes = (
            event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        )
        if (event in names or writes) and inside in str(arguments[0]):
            call()

    def before(function: Any) -> Any:
        def called(*args: Any, **kwargs: Any) -> Any:
            call()
            return function(*args, **kwargs)

        return called

    sys.addaudithook(audit)
    os.fsync = before(os.fsync)
    PenalizedTrainer.training_step = before(PenalizedTrainer.training_step)  # type: ignore[method-assign]
    torch.optim.Optimizer.step = before(torch.optim.Optimizer.step)  # type: ignore[method-assign]


def die() -> None:
    """End this process as the kernel does when memory runs out."""
    os.kill(os.getpid(), signal.SIGKILL)


def die_at_event(run: Path, number: int) -> None:
    """Die before the given event of this process, from 1."""
    left = [number]

    def count() -> None:
        left[0] -= 1
        if left[0] == 0:
            die()

    on_each_event(run, count)


def die_after(seconds: float) -> None:
    """Die after this time, whatever the process is doing then."""
    timer = threading.Timer(seconds, die)
    timer.daemon = True
    timer.start()


def differences(one: Path, other: Path) -> list[str]:
    """The files of two runs that are not the same, times aside."""
    files = [
        {str(file.relative_to(run)): file for file in run.rglob("*") if file.is_file()}
        for run in (one, other)
    ]
    names = sorted(name for name in files[0].keys() | files[1].keys() if not LEFT_OUT.fullmatch(name))
    return [name for name in names if len({_content(run.get(name)) for run in files}) > 1]


def _content(file: Path | None) -> bytes | str | None:
    if file is None:
        return None
    if file.name == "report.html":  # tells times everywhere; the files that it is made of are compared
        return "a report"
    if file.suffix == ".json":
        values = _timeless(json.loads(file.read_text()))
        if file.name == CHECKSUM_FILE:  # the record of a stage has times
            del values["files"][STAGE_FILE]
        return json.dumps(values)
    if file.name == "run.yaml":  # also says where the run is, and when it was started and resumed
        written = yaml.safe_load(file.read_text())
        del written["config"]["output_dir"], written["config"]["train"]["save_every"]
        return json.dumps([written["config"], written["versions"]])
    return file.read_bytes()


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(inner) for key, inner in value.items() if not TIMES.search(key)}
    return [_timeless(inner) for inner in value] if isinstance(value, list) else value


def kill_runs(folder: Path, kills: int, seed: int, *, by_time: bool, processes: int = 1) -> list[str]:
    """Kill processes of runs, `kills` in all; a line for each run that did not end as it should."""
    draw = random.Random(seed)
    config, whole = folder / "config.yaml", folder / "whole"
    write_config_apart(folder)
    begin = time.perf_counter()
    if any(group(processes, lambda rank: count_events(config, whole, rank))):
        return ["the run that is not killed failed"]
    seconds = time.perf_counter() - begin
    events = [json.loads((folder / f"events-{rank}").read_text()) for rank in range(processes)]
    import_what_it_imported(folder)
    wrong: list[str] = []
    killed = runs = 0
    while killed < kills:
        run, before, statuses = folder / f"run-{runs}", killed, [-signal.SIGKILL]
        while -signal.SIGKILL in statuses:
            save_every, victim = draw.choice((1, 2, 3)), draw.randrange(processes)
            number, wait = (
                draw.randint(1, max(1, events[victim] // _SHARE)),
                draw.uniform(0, seconds / _SHARE),
            )

            def work(rank: int) -> None:
                if killed < kills and rank == victim:  # noqa: B023 (called at once)
                    if by_time and killed % 2:  # noqa: B023
                        die_after(wait)  # noqa: B023
                    else:
                        die_at_event(run, number)  # noqa: B023
                learn(config, run, save_every)  # noqa: B023

            statuses = group(processes, work, notice_seconds=draw.choice((0, 5)))
            killed += -signal.SIGKILL in statuses
        runs += 1
        if any(statuses):
            wrong.append(f"{run.name}: ended with status {max(statuses)} after {killed - before} kills")
        elif others := differences(whole, run):
            wrong.append(f"{run.name}: differs in {', '.join(others)} after {killed - before} kills")
    print(f"{killed} kills in {runs} runs of {sum(events)} events: {len(wrong)} of them ended otherwise")
    return wrong


def write_config_apart(folder: Path) -> None:
    """`write_config` in another process, which leaves the random generators and threads of this one alone."""
    if forked(lambda: write_config(folder)):
        raise RuntimeError("the configuration could not be written")


def count_events(config: Path, run: Path, rank: int = 0) -> None:
    """Learn a run that is not killed; beside it, write how much this process does, and what it imports."""
    events = [0]

    def count() -> None:
        events[0] += 1

    on_each_event(run, count)
    learn(config, run, save_every=1)
    (run.parent / f"events-{rank}").write_text(str(events[0]))
    if rank == 0:
        (run.parent / "modules").write_text(json.dumps(sorted(sys.modules)))


def import_what_it_imported(folder: Path) -> None:
    """Import what `count_events` found, so that no process that is forked has to."""
    for name in json.loads((folder / "modules").read_text()):
        with suppress(ImportError):
            importlib.import_module(name)


def main() -> None:
    """Print the counts, and what differs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1, help="that share a run; one of them is killed")
    parser.add_argument(
        "--events-only", action="store_true", help="no kills after a random time, so that it repeats"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        wrong = kill_runs(
            Path(folder),
            options.kills,
            options.seed,
            by_time=not options.events_only,
            processes=options.processes,
        )
    print(*wrong, sep="\n", end="\n" if wrong else "")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
