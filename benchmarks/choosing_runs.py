"""The finished runs of a sweep: of each its summary, whether each test answer was right, and its updates' size.

They are read from the runs' folders, or from a file that keeps no more than this of them, a line of JSON for each run
(benchmarks/results). So a table can be printed again, and joined by a method of one's own, without its runs.
"""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nlora.errors import RunError
from nlora.runs.answers import read_answers
from nlora.runs.layout import OUTPUTS, PREDICTIONS_FILE, stage_name
from nlora.runs.paired_bootstrap import Scored, Scores, example_digest
from nlora.runs.summary import Summary, read_summary

KEPT = {
    "schema_version", "status", "name", "method", "model", "seed", "tasks", "R", "average_accuracy",
    "backward_transfer", "forgetting", "replay", "serve", "routing", "versions",
}  # fmt: skip
"""Of a summary. Times are left out: the machine was shared."""

KEPT_DIGITS = 10
"""Of an example's digest."""

Runs = Mapping[str, Mapping[int, "Run"]]
"""By name and seed."""


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run. last, learned: the score of each test example of each task after the last task, and when the task
    was just learned; empty for tasks that were learned all at once, and for scores that are no means over examples
    (macro-F1). An example is known by its digest, so that a file holds no text. update: Frobenius norm of a task's ΔW,
    mean over the tasks. collisions: in percent.
    """

    summary: Summary
    last: Scores
    learned: Scores
    update: float | None
    collisions: float | None

    @property
    def accuracy(self) -> float:
        assert self.summary.average_accuracy is not None
        return self.summary.average_accuracy

    @property
    def scored(self) -> Scored:
        return Scored(self.summary, self.last or None)

    @property
    def changes(self) -> Scores | None:
        """Of each test example of each earlier task, its last score minus that when just learned."""
        return {
            task: {key: self.last[task][key] - score for key, score in self.learned[task].items()}
            for task in self.summary.tasks[:-1]
            if task in self.learned
        } or None


def same_examples(one: Scores, other: Scores) -> bool:
    """Whether both have scores of the same tasks, and of the same test examples of each."""
    return {task: scores.keys() for task, scores in one.items()} == {
        task: scores.keys() for task, scores in other.items()
    }


def read_runs(path: Path) -> Runs:
    """Of a sweep's folder, or of a file. Raises RunError if there is none."""
    if path.is_file():
        found = _read_file(path)
    else:
        found = [_read_run(file.parent) for file in sorted(path.glob("*/summary.json"))]
    runs: dict[str, dict[int, Run]] = defaultdict(dict)
    for run in found:
        if run is not None:
            runs[run.summary.name][run.summary.seed] = run
    if not runs:
        raise RunError(f"{path}: no finished run in it; give the output_dir of a sweep, or a file of them")
    return runs


def _read_run(folder: Path) -> Run | None:
    summary = read_summary(folder)
    if summary.status != "complete":
        return None
    last: dict[str, Mapping[str, float]] = {}
    learned: dict[str, Mapping[str, float]] = {}
    are_means = all(summary.metric_of(task) != "macro_f1" for task in summary.tasks)
    if are_means:
        last.update(_scores(folder, summary, len(summary.tasks), summary.tasks))
    if are_means and summary.backward_transfer is not None:
        for number, task in enumerate(summary.tasks, start=1):
            learned.update(_scores(folder, summary, number, (task,)))
    update = collisions = None
    file = folder / "analysis.json"
    if file.is_file():
        analysis = json.loads(file.read_text(encoding="utf-8"))
        if analysis["average_collision_rate"] is not None:
            update = statistics.mean(adapter["frobenius"] for adapter in analysis["adapters"].values())
            collisions = 100 * analysis["average_collision_rate"]
    return Run(summary, last, learned, update, collisions)


def _scores(folder: Path, summary: Summary, stage: int, tasks: tuple[str, ...]) -> Scores:
    file = folder / OUTPUTS / stage_name(stage, summary.tasks[stage - 1]) / PREDICTIONS_FILE
    return {
        task: {
            example_digest(key)[:KEPT_DIGITS]: answer.score(summary.metric_of(task))
            for key, answer in answers.items()
        }
        for task, answers in read_answers(file, tasks).items()
    }


def write_runs(runs: Runs, path: Path) -> None:
    """The file: the examples of each task and seed once, then a line for each run.

    Raises RunError for other metrics than exact match, since the file has 0 or 1 for each answer, and for runs of one
    seed that were scored on different test examples. Nothing is written then.
    """
    for name, of_name in runs.items():
        for run in of_name.values():
            if any(run.summary.metric_of(task) != "exact_match" for task in run.summary.tasks):
                raise RunError(
                    f"{name}: scored by another metric than exact match; --keep cannot write such runs"
                )
    lines: list[dict[str, Any]] = []
    known: dict[tuple[str, int], list[str]] = {}
    for name in sorted(runs):
        for seed, run in sorted(runs[name].items()):
            for task in run.summary.tasks:
                keys = list(run.last[task])
                if known.setdefault((task, seed), keys) is keys:
                    lines.append({"task": task, "seed": seed, "examples": keys})
            lines.append(
                {
                    "summary": run.summary.model_dump(
                        mode="json", by_alias=True, include=KEPT, exclude_defaults=True
                    ),
                    "last": _as_digits(run, run.last, known),
                    "learned": _as_digits(run, run.learned, known),
                    "update": run.update,
                    "collisions": run.collisions,
                }
            )
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def _as_digits(run: Run, scores: Scores, known: Mapping[tuple[str, int], list[str]]) -> dict[str, str]:
    seed = run.summary.seed
    if not same_examples(scores, {task: dict.fromkeys(known[task, seed], 0.0) for task in scores}):
        raise RunError(
            f"{run.summary.name}: scored on other test examples than other runs of seed {seed}; "
            "give --keep runs with the same ones"
        )
    return {
        task: "".join(f"{of_task[key]:.0f}" for key in known[task, seed]) for task, of_task in scores.items()
    }


def _read_file(path: Path) -> list[Run | None]:
    known: dict[tuple[str, int], list[str]] = {}
    runs: list[Run | None] = []
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            values = json.loads(line)
            if "examples" in values:
                known[values["task"], values["seed"]] = values["examples"]
            else:
                runs.append(_of_line(values, known))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        number = len(known) + len(runs) + 1
        raise RunError(f"{path}:{number}: no run; give a sweep's output_dir, or a file of --keep") from error
    return runs


def _of_line(values: Mapping[str, Any], known: Mapping[tuple[str, int], list[str]]) -> Run:
    summary = Summary.model_validate(values["summary"] | {"schema": 1})
    last, learned = (
        {
            task: {key: float(digit) for key, digit in zip(known[task, summary.seed], digits, strict=True)}
            for task, digits in values[what].items()
        }
        for what in ("last", "learned")
    )
    return Run(summary, last, learned, values["update"], values["collisions"])
