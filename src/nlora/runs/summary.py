"""summary.json: the whole outcome of a run in one small file, schema 1, and its reader.

    summary = read_summary("runs/demo/nlora")
    summary.average_accuracy, summary.R[-1]

Every command that shows or compares runs reads this file and nothing else of a run.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from nlora.runs.atomic import write_json
from nlora.config.protocol import protocol_notes
from nlora.config.schema import Config
from nlora.errors import RunError
from nlora.evaluation.continual_metrics import summarize
from nlora.evaluation.choices import Decode, Metric, scoring_words
from nlora.runs.task_facts import ExamplesFacts, TaskFacts

SUMMARY_FILE = "summary.json"
SCHEMA: Literal[1] = 1

Score = float | None
"""Percentage, or None where not evaluated."""


class Collision(BaseModel):
    """How often the updates of two tasks change the same weights.

    threshold: absolute; an entry counts when it is larger than this in both updates.
    average_rate: mean over the pairs of tasks, as a share.
    pairs: rate by `a|b`.
    """

    model_config = ConfigDict(frozen=True)

    threshold: float = Field(ge=0)
    average_rate: float = Field(ge=0, le=1)
    pairs: dict[str, float]


class Digests(BaseModel):
    """Which examples and which prompt a task had: runs whose digests differ were not asked the same."""

    model_config = ConfigDict(frozen=True)

    train: ExamplesFacts
    test: ExamplesFacts
    prompt_sha256: str


class Summary(BaseModel):
    """What summary.json says; attributes are its keys, except `schema`, which is `schema_version` here."""

    model_config = ConfigDict(frozen=True, populate_by_name=True, protected_namespaces=())

    schema_version: Literal[1] = Field(SCHEMA, alias="schema")
    status: Literal["running", "complete"]
    name: str
    method: str
    model: str
    seed: int
    tasks: tuple[str, ...] = Field(min_length=1, description="Names, in the order of learning.")
    R: tuple[tuple[Score, ...], ...] = Field(description="Row k-1 is stage k; T rows of T scores in percent.")
    zero_shot: tuple[Score, ...] | None = Field(None, description="Scores before any training, R[0].")
    average_accuracy: Score = Field(None, description="Mean over the T tasks of the last row.")
    backward_transfer: Score = Field(
        None, description="Mean over the T-1 earlier tasks: last row - diagonal."
    )
    forgetting: Score = Field(None, description="Mean over the T-1 earlier tasks: best score - last row.")
    forward_transfer: Score = Field(None, description="Mean over the T-1 later tasks: just before - R[0].")
    collision: Collision | None = None
    train_seconds: tuple[float, ...] = Field((), description="One for each committed stage.")
    evaluate_seconds: tuple[float, ...] = Field((), description="One for each committed stage.")
    train_samples_per_second: tuple[float, ...] = Field((), description="One for each committed stage.")
    peak_memory_bytes: int | None = Field(None, description="Largest of all stages; null where not measured.")
    trained_parameters: int | None = Field(
        None, description="Largest of all stages; null in files of before it was counted."
    )
    versions: dict[str, str] = Field(default_factory=dict)
    protocol: Literal["released", "repaired"] | None = Field(
        None, description="Null where an older nlora wrote the file."
    )
    protocol_notes: tuple[str, ...] = Field((), description="In what the run differs from the repaired one.")

    metrics: dict[str, Metric] = Field(
        default_factory=dict,
        description="What the scores of each task are, by its name; one that is not there (yet) is exact_match.",
    )
    decode: dict[str, Decode] = Field(
        default_factory=dict,
        description="How each task's answers were made; empty in files of older versions.",
    )
    digests: dict[str, Digests] = Field(
        default_factory=dict, description="Of each task asked so far; empty in files of older versions."
    )

    def metric_of(self, task: str) -> Metric:
        """What the scores of a task are."""
        return self.metrics.get(task, "exact_match")

    @property
    def scoring(self) -> str:
        """What the scores are, in words; of the tasks asked so far. Empty where the file does not say it."""
        words = scoring_words({task: self.metric_of(task) for task in self.decode}, self.decode)
        return words + ("; averages are over both kinds" if len(set(self.metrics.values())) > 1 else "")

    @model_validator(mode="after")
    def _fits(self) -> Summary:
        if len(self.R) != len(self.tasks):
            raise ValueError(f"R has {len(self.R)} rows for {len(self.tasks)} tasks")
        summarize(self.R, zero_shot=self.zero_shot)  # refuses what is no matrix of percentages
        return self


class StageRecord(BaseModel):
    """What a committed stage says of itself."""

    model_config = ConfigDict(frozen=True)

    stage: int = Field(ge=1, description="From 1.")
    task: str
    row: tuple[Score, ...] = Field(description="Row of R: a percentage for each task of the run, or null.")
    train_seconds: float = Field(ge=0)
    evaluate_seconds: float = Field(ge=0)
    train_samples_per_second: float = Field(ge=0)
    peak_memory_bytes: int | None = Field(None, ge=0, description="Null where it is not measured.")
    trained_parameters: int | None = Field(None, ge=0, description="Parameters that this stage trained.")
    is_passed_over: bool = Field(False, description="Whether the method trained nothing at this stage.")
    tasks: dict[str, TaskFacts] = Field(
        default_factory=dict, description="The scored tasks as they were; empty in files of older versions."
    )


def summary_of(
    config: Config,
    records: Sequence[StageRecord],
    *,
    zero_shot: Sequence[Score] | None = None,
    versions: Mapping[str, str] | None = None,
    collision: Collision | None = None,
) -> Summary:
    """The summary of the stages committed so far; the averages are None until all are.

    records: of stage 1, 2, ... in order. Raises ValueError when a row does not fit the tasks.
    """
    tasks = tuple(task.name for task in config.tasks)
    complete = len(records) == len(tasks)
    nothing: tuple[Score, ...] = (None,) * len(tasks)
    R = tuple(record.row for record in records) + (nothing,) * (len(tasks) - len(records))
    memory = [record.peak_memory_bytes for record in records if record.peak_memory_bytes is not None]
    trained = [record.trained_parameters for record in records if record.trained_parameters is not None]
    averages: dict[str, Any] = summarize(R, zero_shot=zero_shot) if complete else {}
    known = {name: facts for record in records for name, facts in record.tasks.items()}
    facts = {name: known[name] for name in tasks if name in known}
    return Summary(
        status="complete" if complete else "running",
        name=config.name,
        method=config.method.label,
        model=config.model,
        seed=config.seed,
        tasks=tasks,
        R=R,
        zero_shot=None if zero_shot is None else tuple(zero_shot),
        **averages,
        collision=collision,
        train_seconds=tuple(record.train_seconds for record in records),
        evaluate_seconds=tuple(record.evaluate_seconds for record in records),
        train_samples_per_second=tuple(record.train_samples_per_second for record in records),
        peak_memory_bytes=max(memory, default=None),
        trained_parameters=max(trained, default=None),
        versions=dict(versions or {}),
        protocol=config.protocol,
        protocol_notes=tuple(protocol_notes(config)),
        metrics={name: task.metric for name, task in facts.items()},
        decode={name: task.decode for name, task in facts.items()},
        digests={
            name: Digests(**task.model_dump(include=set(Digests.model_fields)))
            for name, task in facts.items()
        },
    )


def write_summary(folder: Path, summary: Summary) -> None:
    """Replace `folder`/summary.json in one step. Raises RunError when it cannot be written."""
    write_json(folder / SUMMARY_FILE, summary.model_dump(mode="json", by_alias=True))


def run_folders(paths: Iterable[str | Path]) -> list[Path]:
    """The folders themselves and the runs that lie in them; one that is no run and holds runs stands for these."""
    found: list[Path] = []
    for path in map(Path, paths):
        held = [file.parent for file in sorted(path.glob(f"*/{SUMMARY_FILE}"))]
        found += [path, *held] if (path / SUMMARY_FILE).exists() or not held else held
    return found


def read_summary(folder: str | Path) -> Summary:
    """The summary of a run's folder.

    Raises RunError, in one line, when it is missing, broken or of another schema.
    """
    path = Path(folder) / SUMMARY_FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        why = "no summary.json in it" if Path(folder).is_dir() else "no such folder"
        raise RunError(f"{folder}: {why}; give the output_dir of a run") from error
    except NotADirectoryError as error:
        raise RunError(f"{folder}: is a file; give the output_dir of a run") from error
    except (ValueError, OSError) as error:
        raise RunError(f"{path}: cannot be read: {error}; `nlora run` writes it again") from error
    if not isinstance(values, dict) or "schema" not in values:
        raise RunError(f"{path}: is not the summary of a run; it has no key 'schema'")
    if values["schema"] != SCHEMA:
        raise RunError(f"{path}: has schema {values['schema']!r}, this nlora reads {SCHEMA}; update nlora")
    try:
        return Summary.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        what = first["msg"].removeprefix("Value error, ")
        raise RunError(f"{path}: is broken: {key + ': ' if key else ''}{what}{more}") from error
