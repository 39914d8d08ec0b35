"""What a task of a run was, beside its scores: which examples it had, how it was asked, and by what it is scored.

    facts = facts_of(task, config)
    facts.test.count, facts.decode, facts.metric           # 3, "generate", "rougeL"
    changes("tickets", ("stage 1", then), None, facts)     # task tickets: its test examples are others than those ...

It is kept in each stage's record and in summary.json, so that a score can be held against the right examples later.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from nlora.config.schema import Config
from nlora.data.digest import digest, text_digest
from nlora.data.prompts import TAIL, head
from nlora.data.task import Example, Task
from nlora.errors import Problem
from nlora.evaluation.choices import Decode, Metric, decode_of, metric_of

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
