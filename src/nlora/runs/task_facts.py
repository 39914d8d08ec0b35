"""What a task of a run was, beside its scores: which examples it had, how it was asked, and by what it is scored.

    facts = facts_of(task, config)
    facts.test.count, facts.decode, facts.metric           # 3, "generate", "rougeL"
    changes("tickets", ("stage 1", then), None, facts)     # task tickets: its test examples are others than those ...

It is kept in each stage's record and in summary.json, so that a score can be held against the right examples later.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from nlora.config.schema import Config, EvaluateOptions
from nlora.data.digest import digest, text_digest
from nlora.data.prompts import TAIL, head
from nlora.data.task import Example, Task
from nlora.errors import Problem

Decode = Literal["labels", "generate"]
Metric = Literal["exact_match", "rougeL"]
METRIC_NAMES: dict[Metric, str] = {"exact_match": "exact match", "rougeL": "ROUGE-L"}
DECODE_NAMES: dict[Decode, str] = {"labels": "the likeliest label", "generate": "the generated answer"}


class ExamplesFacts(BaseModel):
    """Which examples: after splits and sampling, in their order."""

    model_config = ConfigDict(frozen=True)

    sha256: str = Field(description="Of texts and labels.")
    count: int = Field(ge=0)
    drawn_from: str | None = Field(
        None, description="SHA-256 of the examples that these are a seeded sample of; null: no sample."
    )

    @property
    def source(self) -> tuple[str, int]:
        """The same for two samples of one size that only their seeds make different."""
        return self.drawn_from or self.sha256, self.count


class TaskFacts(BaseModel):
    """One task as it was trained and scored."""

    model_config = ConfigDict(frozen=True)

    train: ExamplesFacts
    test: ExamplesFacts
    prompt_sha256: str = Field(description="Of what stands before and behind each text.")
    decode: Decode = Field(description="How answers are made: the likeliest label, or generated.")
    metric: Metric = Field(description="What the entries of R are.")


def facts_of(task: Task, config: Config, metric: Metric | None = None) -> TaskFacts:
    """What the task is now. metric: None for the task's own (`metric_of`)."""
    return TaskFacts(
        train=_examples(task.train, task.drawn_from[0]),
        test=_examples(task.test, task.drawn_from[1]),
        prompt_sha256=text_digest([head(task), TAIL]),
        decode=decode_of(task, config.evaluate),
        metric=metric or metric_of(task, config),
    )


def metric_of(task: Task, config: Config) -> Metric:
    """Labels are matched exactly. Free text is compared by ROUGE-L, but under the released protocol, which matches."""
    return "exact_match" if task.labels or config.protocol == "released" else "rougeL"


def decode_of(task: Task, options: EvaluateOptions) -> Decode:
    """How a task is answered: free text is always generated."""
    return options.decode if task.labels else "generate"


def by_task(values: Mapping[str, str]) -> str:
    """The value of each task, in words: `a`; where they differ, `a for x, y; b for z`."""
    tasks: dict[str, list[str]] = {}
    for task, value in values.items():
        tasks.setdefault(value, []).append(task)
    if len(tasks) < 2:
        return next(iter(tasks), "")
    return "; ".join(f"{value} for {', '.join(names)}" for value, names in tasks.items())


def scoring_words(metrics: Mapping[str, Metric], decode: Mapping[str, Decode]) -> str:
    """What the scores are: `exact match of the likeliest label`; by task where they differ.

    metrics: of every task. decode: of those where it is known.
    """
    return by_task(
        {
            task: METRIC_NAMES[metric] + (f" of {DECODE_NAMES[decode[task]]}" if task in decode else "")
            for task, metric in metrics.items()
        }
    )


def changes(
    task: str, scored: tuple[str, TaskFacts] | None, trained: tuple[str, TaskFacts] | None, now: TaskFacts
) -> list[Problem]:
    """What of a task is otherwise than a run had it.

    scored, trained: who was first scored on it, and who was trained on it (`stage 1`), with what the task was then;
    None: nobody yet.
    """
    found = []
    for split, verb, then, after in (
        ("test", "scored", scored, now.test),
        ("train", "trained", trained, now.train),
    ):
        if then is None:
            continue
        before = then[1].test if split == "test" else then[1].train
        if before.sha256 != after.sha256:
            found.append(
                f"its {split} examples are others than those {then[0]} was {verb} on: {before.count} then, "
                f"{after.count} now; put the file back, or give another output_dir"
            )
    asked = trained or scored
    if asked is not None and asked[1].prompt_sha256 != now.prompt_sha256:
        found.append(
            f"its prompt is another than the one {asked[0]} was asked with; put instruction and labels back, or give "
            "another output_dir"
        )
    return [Problem(f"task {task}", what) for what in found]


def differences(then: TaskFacts, now: TaskFacts) -> list[str]:
    """In what a task is asked otherwise than it was, in words; the training examples do not count."""
    found = []
    if then.test.sha256 != now.test.sha256:
        found.append(f"{now.test.count} other test examples ({then.test.count} then)")
    if then.prompt_sha256 != now.prompt_sha256:
        found.append("another prompt")
    if then.decode != now.decode:
        found.append(f"decode {now.decode} ({then.decode} then)")
    return found


def _examples(examples: tuple[Example, ...], drawn_from: str | None) -> ExamplesFacts:
    return ExamplesFacts(sha256=digest(examples), count=len(examples), drawn_from=drawn_from)
