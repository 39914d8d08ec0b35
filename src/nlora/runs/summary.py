"""summary.json: the outcome of a run in one small file, and its reader.

Averages of any number of runs need only this file. Answers to single examples are read where they are asked for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from nlora.config.messages import first_problem
from nlora.config.protocol import protocol_notes
from nlora.config.schema import Config
from nlora.errors import RunError
from nlora.evaluation.choices import Decode, Metric, both_or_all, scoring_words
from nlora.evaluation.continual_metrics import scored_tasks, summarize, summarize_scored
from nlora.runs.atomic import write_json
from nlora.runs.general_scores import General, GeneralScores, general_of, perplexity_change
from nlora.runs.layout import no_run
from nlora.runs.routing import Routing
from nlora.runs.run_changes import settings_digest
from nlora.runs.task_records import ExamplesRecord, TaskRecord

SUMMARY_FILE = "summary.json"
SCHEMA: Literal[1] = 1

_FROM_STAGES = ("status", "tasks", "R", "zero_shot", "average_accuracy", "backward_transfer", "forgetting",
                "forward_transfer", "train_seconds", "routing", "general")  # fmt: skip
"""Keys that follow from the stages' records, in files of every version."""

Score = Annotated[float, Field(allow_inf_nan=False)] | None
"""A percentage; None if not evaluated."""


class Collision(BaseModel):
    """How often the updates of two tasks change the same weights.

    threshold: absolute; an entry counts if it is larger than this in both updates.
    average_rate: mean over the pairs of tasks, a share from 0 to 1.
    pairs: the rate of each pair, by `a|b`.
    """

    model_config = ConfigDict(frozen=True)

    threshold: float = Field(ge=0)
    average_rate: float = Field(ge=0, le=1)
    pairs: dict[str, float]


class Digests(BaseModel):
    """Which examples and prompt a task had. Scores of runs with different digests do not compare."""

    model_config = ConfigDict(frozen=True)

    train: ExamplesRecord
    test: ExamplesRecord
    prompt_sha256: str
    scorer_version: str | None = None

    def is_scored_like(self, other: Digests) -> bool:
        """Whether both had the same test examples and the same version of a function, as far as is known."""
        return (
            self.test.sha256 == other.test.sha256
            and len({self.scorer_version, other.scorer_version} - {None}) < 2
        )


class Summary(BaseModel):
    """The contents of summary.json. Attributes are its keys, except that `schema` is called `schema_version`."""

    model_config = ConfigDict(frozen=True, populate_by_name=True, protected_namespaces=())

    schema_version: Literal[1] = Field(SCHEMA, alias="schema")
    status: Literal["running", "complete"]
    name: str
    method: str
    model: str
    quantize: Literal["4bit", "8bit"] | None = None
    seed: int
    tasks: tuple[str, ...] = Field(min_length=1, description="Names, in the order of learning.")
    R: tuple[tuple[Score, ...], ...] = Field(description="T rows of T scores in percent; row k-1 is stage k.")
    zero_shot: tuple[Score, ...] | None = Field(None, description="Scores before any training, R[0].")
    average_accuracy: Score = Field(None, description="Mean over the T tasks of the last row.")
    backward_transfer: Score = Field(None, description="Mean over T-1 earlier tasks: last row - diagonal.")
    backward_transfer_over_all: Score = Field(None, description="The same sum, divided by T, as SAPT does.")
    forgetting: Score = Field(None, description="Mean over the T-1 earlier tasks: best before - last row.")
    forward_transfer: Score = Field(None, description="Mean over the T-1 later tasks: just before - R[0].")
    collision: Collision | None = None
    train_seconds: tuple[float, ...] = Field((), description="One per committed stage.")
    prepare_seconds: tuple[float, ...] = Field((), description="One per committed stage.")
    evaluate_seconds: tuple[float, ...] = Field((), description="One per committed stage.")
    train_samples_per_second: tuple[float, ...] = Field((), description="One per committed stage.")
    peak_memory_bytes: int | None = Field(None, description="Maximum over the stages; null if not measured.")
    trained_parameters: int | None = Field(None, description="Maximum over the stages; null in older files.")
    replay: str = Field("", description="What is replayed of each task beside the method; empty: nothing.")
    replayed_examples: tuple[int, ...] = Field(
        (), description="Examples of earlier tasks that were trained on again, one per committed stage."
    )
    versions: dict[str, str] = Field(default_factory=dict)
    settings_sha256: str = Field("", description="See `settings_digest`; empty in files of older versions.")
    protocol: Literal["released", "repaired"] | None = Field(None, description="Null in older files.")
    protocol_notes: tuple[str, ...] = Field((), description="How the run differs from the repaired protocol.")

    metrics: dict[str, Metric] = Field(
        default_factory=dict,
        description="The metric of each task, by name; a task that is missing has exact_match.",
    )
    decode: dict[str, Decode] = Field(
        default_factory=dict,
        description="How each task was answered; empty in files of older versions.",
    )
    digests: dict[str, Digests] = Field(
        default_factory=dict, description="Of each task scored so far; empty in files of older versions."
    )

    notes: tuple[str, ...] = Field((), description="Odd outcomes of the stages, one sentence each.")
    serve: Literal["pertask", "routed"] | None = Field(
        None, description="Whether each task has a model of its own, and whether the task is guessed."
    )
    routing: Routing | None = Field(
        None, description="How well the latest stage guessed the tasks; null if none was guessed."
    )
    general: General = Field((), description="What the model knew before: untouched, then after each stage.")
    perplexity_change: float | None = Field(None, description="From untouched to the last stage, in percent.")

    @property
    def method_label(self) -> str:
        """What tables call the method: `inclora`, `inclora + replay`, or `inclora, routed`."""
        learner = f"{self.method} + replay" if self.replay else self.method
        return learner if self.serve is None else f"{learner}, {self.serve}"

    @property
    def scored(self) -> list[int]:
        """The indices of the tasks that have scores; the averages are over them."""
        return scored_tasks(self.R)

    @property
    def averaged(self) -> tuple[str, ...]:
        """The names of the tasks that have scores. A task that came in as an adapter may have none."""
        return tuple(self.tasks[i] for i in self.scored)

    def metric_of(self, task: str) -> Metric:
        """The metric of a task's scores."""
        return self.metrics.get(task, "exact_match")

    @property
    def scoring(self) -> str:
        """What the scores so far are, in words; empty if the file does not say."""
        words = scoring_words({task: self.metric_of(task) for task in self.decode}, self.decode)
        kinds = len(set(self.metrics.values()))
        return words + (f"; averages are over {both_or_all(kinds)} kinds" if kinds > 1 else "")

    def agrees_with(self, now: Summary) -> bool:
        """Whether it has the scores and the stages of one that was just made. Files of older versions lack keys."""
        return all(getattr(self, key) == getattr(now, key) for key in _FROM_STAGES)

    @model_validator(mode="after")
    def _fits(self) -> Summary:
        if len(self.R) != len(self.tasks):
            raise ValueError(f"R has {len(self.R)} rows for {len(self.tasks)} tasks")
        summarize(self.R, zero_shot=self.zero_shot)  # raises ValueError if it is no matrix of percentages
        return self


class StageRecord(BaseModel):
    """The contents of stage.json."""

    model_config = ConfigDict(frozen=True)

    stage: int = Field(ge=1, description="From 1.")
    task: str
    scores: dict[str, Annotated[float, Field(ge=0, le=100)]] = Field(
        description="The row of R: a percentage for each scored task."
    )
    train_seconds: float = Field(ge=0)
    prepare_seconds: float = Field(0, ge=0, description="What the method, or a router, does beside training.")
    evaluate_seconds: float = Field(ge=0)
    train_samples_per_second: float = Field(ge=0)
    peak_memory_bytes: int | None = Field(None, ge=0, description="Null if not measured.")
    trained_parameters: int | None = Field(None, ge=0, description="Parameters that this stage trained.")
    is_adopted: bool = Field(False, description="True if the adapter existed before the run.")
    best_epoch: int | None = Field(
        None, ge=1, description="The epoch that was kept; null without early stopping."
    )
    best_score: float | None = Field(
        None, ge=0, le=100, description="Its score on the examples held out from train, in percent."
    )
    replayed: dict[str, int] = Field(
        default_factory=dict, description="Examples of each earlier task that this stage trained on as well."
    )
    replay_passes: float | None = Field(
        None, ge=0, description="How often it trained on each of these, on average; null if there are none."
    )
    is_skipped: bool = Field(False, description="True if the method trained nothing at this stage.")
    notes: tuple[str, ...] = Field(
        (), description="What is odd about the stage's outcome, one sentence each; empty in older files."
    )
    tasks: dict[str, TaskRecord] = Field(
        default_factory=dict, description="Records of the scored tasks; empty in files of older versions."
    )
    routing: Routing | None = Field(None, description="How well tasks were guessed; null if none was.")
    general: GeneralScores | None = Field(None, description="What it knew before; null if not measured.")


def summary_of(
    config: Config,
    records: Sequence[StageRecord],
    *,
    zero_shot: Mapping[str, float] | None = None,
    general_before: GeneralScores | None = None,
    versions: Mapping[str, str] | None = None,
    collision: Collision | None = None,
) -> Summary:
    """The summary of the stages committed so far. The averages are None until all stages are.

    records: of stages 1, 2, ... in order. zero_shot (scores by task), general_before: of the untouched model.
    """
    general = general_of(general_before, [record.general for record in records])
    tasks = tuple(task.name for task in config.tasks)
    complete = len(records) == len(tasks)
    scores = [record.scores for record in records] + [{}] * (len(tasks) - len(records))
    R = tuple(tuple(map(row.get, tasks)) for row in scores)
    before = None if zero_shot is None else tuple(map(zero_shot.get, tasks))
    memory = [record.peak_memory_bytes for record in records if record.peak_memory_bytes is not None]
    trained = [record.trained_parameters for record in records if record.trained_parameters is not None]
    averages: dict[str, Any] = summarize_scored(R, zero_shot=before) if complete else {}
    known = {name: task for record in records for name, task in record.tasks.items()}
    known_tasks = {name: known[name] for name in tasks if name in known}
    return Summary(
        status="complete" if complete else "running",
        name=config.name,
        method=config.method.label,
        model=config.model,
        quantize=config.quantize,
        seed=config.seed,
        tasks=tasks,
        R=R,
        zero_shot=before,
        **averages,
        collision=collision,
        train_seconds=tuple(record.train_seconds for record in records),
        prepare_seconds=tuple(record.prepare_seconds for record in records),
        evaluate_seconds=tuple(record.evaluate_seconds for record in records),
        train_samples_per_second=tuple(record.train_samples_per_second for record in records),
        peak_memory_bytes=max(memory, default=None),
        trained_parameters=max(trained, default=None),
        replay=config.replay.in_words,
        replayed_examples=tuple(sum(record.replayed.values()) for record in records),
        versions=dict(versions or {}),
        settings_sha256=settings_digest(config),
        protocol=config.protocol,
        protocol_notes=tuple(protocol_notes(config)),
        metrics={name: task.metric for name, task in known_tasks.items()},
        decode={name: task.decode for name, task in known_tasks.items()},
        digests={
            name: Digests(**task.model_dump(include=set(Digests.model_fields)))
            for name, task in known_tasks.items()
        },
        serve=config.serve,
        routing=next((r.routing for r in reversed(records) if r.routing is not None), None),
        general=general,
        perplexity_change=perplexity_change(general) if complete else None,
        notes=tuple(f"stage {r.stage}, {r.task}: {note}" for r in records for note in r.notes),
    )


def write_summary(folder: Path, summary: Summary) -> None:
    """Replace `folder`/summary.json atomically. Raises RunError if it cannot be written."""
    write_json(folder / SUMMARY_FILE, summary.model_dump(mode="json", by_alias=True))


def read_summary(folder: str | Path) -> Summary:
    """The summary of the run in a folder. Raises RunError if it is missing, broken or of another schema."""
    path = Path(folder) / SUMMARY_FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise no_run(folder, SUMMARY_FILE) from error
    except (ValueError, OSError, RecursionError) as error:
        raise RunError(f"{path}: cannot be read: {error}; nlora run writes it again") from error
    if not isinstance(values, dict) or "schema" not in values:
        raise RunError(f"{path}: not the summary of a run; it has no key 'schema'")
    if values["schema"] != SCHEMA:
        raise RunError(
            f"{path}: has schema {values['schema']!r}, but this version of nlora reads {SCHEMA}; update nlora"
        )
    try:
        return Summary.model_validate(values)
    except ValidationError as error:
        raise RunError(f"{path}: broken: {first_problem(error)}") from error
