"""What each task of a run was: its examples, its prompt, how it was answered and scored.

Every stage's record and summary.json keep this, so that a score can be matched to the right examples later. A run
resumes only with the examples and prompts that its stages had.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from nlora.config.schema import Config
from nlora.data.digest import digest, text_digest
from nlora.data.prompts import frame
from nlora.data.task import Example, Task
from nlora.errors import Problem
from nlora.evaluation.choices import Decode, Metric, decode_of, metric_name, metric_of


class ExamplesRecord(BaseModel):
    """Which examples, after splits and sampling, in their order."""

    model_config = ConfigDict(frozen=True)

    sha256: str = Field(description="Of texts and labels.")
    count: int = Field(ge=0)
    drawn_from: str | None = Field(
        None, description="SHA-256 of the examples that these were sampled from; null if they are no sample."
    )

    @property
    def source(self) -> tuple[str, int]:
        """Equal for two samples of the same size that differ only by their seed."""
        return self.drawn_from or self.sha256, self.count


class TaskRecord(BaseModel):
    """One task as it was trained and scored."""

    model_config = ConfigDict(frozen=True)

    train: ExamplesRecord
    test: ExamplesRecord
    prompt_sha256: str = Field(description="Of what comes before and after each text.")
    chat: bool = Field(False, description="Whether the examples are conversations.")
    decode: Decode = Field(description="How answers are made: the likeliest label, or generated.")
    metric: Metric = Field(description="What the entries of R are.")
    scorer_version: str | None = Field(
        None, description="Digest of the file with a metric of your own; null otherwise, and in older files."
    )

    def is_scored_like(self, other: TaskRecord) -> bool:
        """Whether both were answered and scored alike on the same test examples, as far as is known."""
        mine, theirs = ((r.test.sha256, r.decode, r.metric) for r in (self, other))
        versions = {self.scorer_version, other.scorer_version} - {None}
        return mine == theirs and len(versions) < 2


def task_record(task: Task, config: Config, metric: Metric | None = None) -> TaskRecord:
    """The record of a task as it is now. metric: of a task that sets none, as in `metric_of`."""
    return TaskRecord(
        train=_examples(task.train, task.drawn_from[0]),
        test=_examples(task.test, task.drawn_from[1]),
        prompt_sha256=text_digest(frame(task)),
        chat=task.chat,
        decode=decode_of(task, config.evaluate),
        metric=metric_of(task, config, metric),
        scorer_version=task.scorer_version,
    )


def changes(
    task: str, scored: tuple[str, TaskRecord] | None, trained: tuple[str, TaskRecord] | None, now: TaskRecord
) -> list[Problem]:
    """How a task differs from what a run had.

    scored, trained: who was first scored and who was trained on it (`stage 1`), with the record of that time;
    None if nobody was yet.
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
                f"its {split} examples are not the ones {then[0]} was {verb} on ({before.count} then, "
                f"{after.count} now); restore the file, or choose another output_dir"
            )
    first = trained or scored
    if first is not None and first[1].prompt_sha256 != now.prompt_sha256:
        found.append(
            f"its prompt is not the one {first[0]} used; restore instruction and labels, or choose another output_dir"
        )
    if scored is not None and scored[1].metric != now.metric:
        found.append(
            f"it is scored by {metric_name(now.metric)}, but {scored[0]} was scored on it by "
            f"{metric_name(scored[1].metric)}; restore its metric, or choose another output_dir"
        )
    return [Problem(f"task {task}", what) for what in found]


def differences(then: TaskRecord, now: TaskRecord) -> list[str]:
    """What differs between two ways of scoring a task, in words; the training examples do not matter."""
    found = []
    if then.test.sha256 != now.test.sha256:
        found.append(f"{now.test.count} other test examples (the run had {then.test.count})")
    if then.prompt_sha256 != now.prompt_sha256:
        found.append("another prompt")
    if then.decode != now.decode:
        found.append(f"decode {now.decode} (the run had {then.decode})")
    if then.metric != now.metric:
        found.append(f"scored by {metric_name(now.metric)} (the run: by {metric_name(then.metric)})")
    elif len({then.scorer_version, now.scorer_version} - {None}) > 1:
        found.append(f"another version of {metric_name(now.metric)}, whose file was edited")
    return found


def _examples(examples: tuple[Example, ...], drawn_from: str | None) -> ExamplesRecord:
    return ExamplesRecord(sha256=digest(examples), count=len(examples), drawn_from=drawn_from)
