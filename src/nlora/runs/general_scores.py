"""What a model knew before, in numbers: of the untouched model, and after each stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from nlora.errors import RunError
from nlora.models.processes import by_main
from nlora.runs.atomic import write_json

GENERAL_FILE = "general.json"
"""In a run's folder: the numbers of the untouched model."""


class GeneralScores(BaseModel):
    """The numbers of one model. perplexity, loss, bits_per_byte: see `nlora.evaluation.perplexity`.

    >>> before, after = (GeneralScores(loss=1, perplexity=ppl) for ppl in (20.0, 25.0))
    >>> after.change_since(before)
    25.0
    """

    model_config = ConfigDict(frozen=True)

    text: str | None = Field(None, description="The text as the configuration names it; null: none.")
    text_sha256: str | None = Field(None, description="Of the characters that were measured.")
    tokens: int = Field(0, ge=0, description="Tokens of the text that were predicted.")
    loss: float | None = Field(None, description="Mean over these tokens, in nats; null if it is not finite.")
    perplexity: float | None = Field(None, description="Null if it is not finite.")
    bits_per_byte: float | None = None
    harness: dict[str, dict[str, float]] = Field(
        default_factory=dict,
        description="By task of lm-evaluation-harness, then by metric, on its own scale.",
    )
    harness_names: tuple[str, ...] = Field(
        (), description="The tasks and groups that were asked for; empty in files of older versions."
    )
    harness_limit: int | None = Field(None, description="Examples of each of its tasks at most; null: all.")
    seconds: float = Field(0.0, ge=0, description="What measuring took.")

    def change_since(self, before: GeneralScores | None) -> float | None:
        """How much higher the perplexity is than it was, in percent; None if it is not known, or of another text."""
        if before is None or before.perplexity is None or self.perplexity is None:
            return None
        if before.text_sha256 != self.text_sha256:
            return None
        return 100.0 * (self.perplexity / before.perplexity - 1.0)

    def with_more(self, more: GeneralScores) -> GeneralScores:
        """These numbers and `more`, of the same model: a text if there was none, or other tasks of the harness."""
        return (more if self.text is None else self).model_copy(
            update={
                "harness": self.harness | more.harness,
                "harness_names": (*self.harness_names, *more.harness_names),
                "harness_limit": (more if more.harness else self).harness_limit,
                "seconds": self.seconds + more.seconds,
            }
        )


General = tuple[GeneralScores | None, ...]
"""Before the first stage, then after each stage; None for one that was not measured. Empty if nothing was."""


def general_of(before: GeneralScores | None, stages: Sequence[GeneralScores | None]) -> General:
    """The numbers of a run so far, in order."""
    return (before, *stages) if before is not None or any(stages) else ()


def perplexity_change(general: Sequence[GeneralScores | None]) -> float | None:
    """From before the first stage to the last one, in percent; None if either was not measured."""
    return general[-1].change_since(general[0]) if len(general) > 1 and general[-1] is not None else None


def harness_rows(general: Sequence[GeneralScores | None]) -> Mapping[tuple[str, str], list[float | None]]:
    """The numbers of the harness by task and metric, in the order of `general`; without the standard errors."""
    keys = {
        (task, metric): None
        for scores in general
        if scores is not None
        for task, metrics in scores.harness.items()
        for metric in metrics
        if "_stderr" not in metric
    }
    return {
        (task, metric): [None if s is None else s.harness.get(task, {}).get(metric) for s in general]
        for task, metric in keys
    }


def general_line(scores: GeneralScores, before: GeneralScores | None) -> str:
    """The numbers in a line for people. before: of the untouched model; None if these are its own.

    >>> print(general_line(GeneralScores(perplexity=25.0, harness={"a": {"acc": 0.5}}), GeneralScores(perplexity=20.0)))
    perplexity 25.00 (+25.0 % since before the first task), a acc 0.500
    """
    parts = []
    if scores.text is not None or scores.perplexity is not None:
        shown = "not finite" if scores.perplexity is None else f"{scores.perplexity:.2f}"
        change = scores.change_since(before)
        parts.append(f"perplexity {shown}" + (f" ({since(change)})" if change is not None else ""))
    parts += [f"{task} {metric} {row[0]:.3f}" for (task, metric), row in harness_rows([scores]).items()]
    return ", ".join(parts)


def since(change: float) -> str:
    """A change of the perplexity in words."""
    return f"{round(change, 1) + 0.0:+.1f} % since before the first task"


@by_main
def write_before(folder: Path, scores: GeneralScores) -> None:
    """Save the numbers of the untouched model in the run's folder."""
    write_json(folder / GENERAL_FILE, scores.model_dump(mode="json"))


def read_before(folder: Path) -> GeneralScores | None:
    """What `write_before` saved; None if it was not written (yet). Raises RunError if it is broken."""
    path = folder / GENERAL_FILE
    if not path.exists():
        return None
    try:
        return GeneralScores.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: broken; delete it to measure the untouched model again") from error
