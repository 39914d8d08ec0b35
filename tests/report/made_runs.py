"""Runs written by nlora's own writers, to test reports without a model.

    folder = make_run(tmp_path / "a", tasks=("colors", "animals"), analyzed=True)

Scores are chosen, answers agree with them exactly, and losses and updates follow simple formulas.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from helpers import scores_of
from nlora.config.schema import Config
from nlora.runs.folder import RunFolder, write_stage_record
from nlora.runs.released_files import Prediction, predict_results, train_results, write_results
from nlora.runs.summary import StageRecord

TESTS = 20
"""Test examples of each task: scores are multiples of 5."""
LAYERS = 6
VERSIONS = {"nlora": "0.1.0", "torch": "2.13.0"}


def right_answers(task: int, stage: int, tasks: int) -> int:
    """Of TESTS: 18 when just learned, then one or two fewer with each later stage, never under 4."""
    return max(18 - (1 + task % 2) * (stage - task) - (0 if tasks < 8 else task % 3), 4)


def matrix(tasks: int, fewer: int = 0) -> list[list[float | None]]:
    """R in percent, as the made answers have it."""
    return [
        [100 * (right_answers(i, k, tasks) - fewer) / TESTS if i <= k else None for i in range(1, tasks + 1)]
        for k in range(1, tasks + 1)
    ]


def make_run(
    folder: Path,
    *,
    name: str = "made",
    tasks: Sequence[str] = ("colors", "animals", "plants"),
    method: Any = "inclora",
    seed: int = 1,
    stages: int | None = None,
    analyzed: bool = False,
    label: str = "red",
    wrong: str = "blue",
    sentence: str = "the thing number {} was painted",
    steps: int | Sequence[int] = 12,
    logged: int = 1,
    fewer: int = 0,
    unscored: int = 0,
    **config_too: Any,
) -> Path:
    """A run in `folder`; stages: how many are finished (None: all).

    fewer: right answers of each task and stage than `right_answers` says.
    unscored: how many of the first tasks have no test examples. An even number changes no score of the other tasks.
    steps: of each stage's training; logged: of these, every how many are in the log.
    """
    taken = [steps] * len(tasks) if isinstance(steps, int) else list(steps)
    config = Config.model_validate(
        {"name": name, "model": "made/up", "tasks": list(tasks), "method": method, "seed": seed,
         "output_dir": str(folder), **config_too}
    )  # fmt: skip
    R = [[None] * unscored + row[unscored:] for row in matrix(len(tasks), fewer)]
    with RunFolder.open(config, VERSIONS) as run:
        for stage in range(1, (len(tasks) if stages is None else stages) + 1):
            with run.stage(stage) as place:
                answers = [
                    Prediction("TC", task, str(n), sentence.format(n), label, "Which color is it?\n{0}\nAnswer:",
                               label if n < right_answers(i, stage, len(tasks)) - fewer else wrong)
                    for i, task in enumerate(tasks[:stage], start=1) if i > unscored for n in range(TESTS)
                ]  # fmt: skip
                if answers:
                    write_results(
                        place,
                        train_results(
                            epochs=2,
                            loss=0.5,
                            runtime_seconds=30,
                            samples=160,
                            steps=taken[stage - 1],
                            padding_share=0,
                        ),
                        predict_results(answers, decode="labels", runtime_seconds=2, steps=1),
                        answers,
                    )
                _write_state(place, stage, taken[stage - 1], logged, 0.0 if method == "inclora" else 0.1)
                write_stage_record(
                    place,
                    StageRecord(
                        stage=stage,
                        task=tasks[stage - 1],
                        scores=scores_of(tasks, R[stage - 1]),
                        train_seconds=30.0 + stage,
                        prepare_seconds=0.75 * stage,
                        evaluate_seconds=2.0 * stage,
                        train_samples_per_second=5.0,
                        peak_memory_bytes=1_900_000_000 + stage,
                    ),
                )
            run.write_summary()
    if analyzed:
        (folder / "analysis.json").write_text(
            json.dumps(analysis(tasks, R, rate=0.3 if method == "inclora" else 0.1))
        )
    return folder


def _write_state(place: Path, stage: int, steps: int, logged: int, penalty: float) -> None:
    history = [
        {
            "epoch": 1.0,
            "loss": 1.5 * math.exp(-step / steps) + 0.1 * stage,
            "penalty": penalty * step / steps,
            "learning_rate": 1e-3 * (1 - step / (2 * steps)),
            "step": step,
        }
        for step in range(logged, steps + 1, logged)
    ]
    total = {"train_loss": 0.5, "step": steps, "train_runtime": 30.0}
    (place / "trainer_state.json").write_text(
        json.dumps({"global_step": steps, "log_history": [*history, total]})
    )


def analysis(tasks: Sequence[str], R: Sequence[Sequence[float | None]], rate: float) -> dict[str, Any]:
    """analysis.json of updates that collide more the later they are learned."""
    kinds = ["q_proj", "v_proj"] * LAYERS
    layers = [layer for layer in range(LAYERS) for _ in range(2)]
    pairs = {
        f"{a}|{b}": rate * (1 + (i + j) / (4 * len(tasks)))
        for (i, a), (j, b) in combinations(enumerate(tasks), 2)
    }
    thresholds = [10.0**-k for k in range(6, 1, -1)]
    return {
        "schema": 1,
        "threshold": 1e-4,
        "threshold_rule": "a tenth of the pooled root mean square",
        "adapters": {
            task: {"density": rate + 0.1, "nuclear_norm": 2.0 + i, "stable_rank": 2.5, "effective_rank": 5.5,
                   "l1": 900.0, "frobenius": 3.0}
            for i, task in enumerate(tasks)
        },
        "pairs": {
            pair: {"collision_rate": value, "sign_conflict": 0.49, "overlap_energy": value / 2,
                   "orthogonality": 20 * value, "update_orthogonality": 3.0, "cosine": 0.01,
                   "row_angle_degrees": 71.0, "column_angle_degrees": 65.0}
            for pair, value in pairs.items()
        },
        "average_collision_rate": math.fsum(pairs.values()) / max(len(pairs), 1),
        "modules": [f"model.layers.{layer}.self_attn.{kind}" for layer, kind in zip(layers, kinds, strict=True)],
        "layers": layers,
        "kinds": kinds,
        "by_module": {
            "density": {task: [0.4] * len(kinds) for task in tasks},
            "nuclear_norm": {task: [1.0 + 0.1 * n for n in range(len(kinds))] for task in tasks},
            "collision_rate": {
                pair: [value * (0.5 + n / len(kinds)) for n in range(len(kinds))] for pair, value in pairs.items()
            },
        },
        "curve": {
            "thresholds": thresholds,
            "density": {task: [1 / (1 + 3000 * t * (i + 1)) for t in thresholds] for i, task in enumerate(tasks)},
            "average_collision_rate": [rate / (1 + 3000 * t) for t in thresholds],
        },
        "notes": ["The curves are of a sample of the rows."],
        "forgetting": {
            "pairs": [
                {"earlier": a, "later": b, "drop": _drop(R, i, j), "collision_rate": pairs[f"{a}|{b}"],
                 "overlap_energy": pairs[f"{a}|{b}"] / 2}
                for (i, a), (j, b) in combinations(enumerate(tasks), 2)
            ],
            "correlation": {
                "collision_rate": {"pearson": 0.61, "spearman": 0.58, "n": len(pairs), "p_permutation": 0.04},
                "overlap_energy": None,
            },
        },
    }  # fmt: skip


def _drop(R: Sequence[Sequence[float | None]], earlier: int, later: int) -> float | None:
    before, after = R[later - 1][earlier], R[later][earlier]
    return None if before is None or after is None else before - after


def changed_summary(folder: Path, **keys: object) -> Path:
    """The run, with keys of its summary changed."""
    path = folder / "summary.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))
    return folder
