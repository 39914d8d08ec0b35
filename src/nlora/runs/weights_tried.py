"""weights_tried.json: what a stage's search for its weight (`nlora.runs.auto_weight`) has found."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from nlora.runs.layout import WEIGHTS_TRIED_FILE


class Tried(BaseModel):
    """The contents of weights_tried.json.

    by: what the new task's held-out examples are judged by (`auto_weight.by`). examples: how many these are.
    remembered: of each earlier task. scores: what the held-out examples are worth, in percent, by weight; with
    remembered ones, the mean over the tasks. of_tasks: the same of each task. margin: in points. weight: the one
    chosen; None so far. made_with: what the scores depend on. seconds: of all tries, also before the run was stopped;
    not kept with the stage.
    """

    by: Literal["probability", "score"] = "score"
    examples: int
    remembered: dict[str, int] = {}
    margin: float = 0.0
    scores: dict[float, float] = {}
    of_tasks: dict[float, dict[str, float]] = {}
    weight: float | None = None
    made_with: dict[str, Any] = {}
    seconds: float = 0.0

    def kept(self) -> dict[str, Any]:
        """As JSON; without remembered examples, their keys are left out."""
        return self.model_dump(mode="json", exclude=set() if self.remembered else {"remembered", "of_tasks"})

    def standard_error(self) -> float:
        """Of the score without the penalty, in points: that of a share. A mean of probabilities has a smaller one."""
        numbers = [self.examples, *self.remembered.values()]
        scores = list(self.of_tasks[0.0].values()) if self.remembered else [self.scores[0.0]]
        variance = 0.0
        for n, score in zip(numbers, scores, strict=True):
            share = (n * score / 100 + 1) / (n + 2)  # not 0 or 1, which would have no standard error
            variance += share * (1 - share) / n
        return 100 * math.sqrt(variance) / len(numbers)

    @property
    def held_out(self) -> str:
        """What was looked at, in words."""
        if not self.remembered:
            return f"{self.examples} held-out examples"
        kept = ", ".join(f"{n} of {name}" for name, n in self.remembered.items())
        return (
            f"{self.examples} held-out examples and on remembered ones ({kept}), each task counting the same"
        )

    @property
    def words(self) -> str:
        """What was chosen, and why, in a sentence."""
        without = self.scores[0.0]
        tried = ", ".join(
            f"{weight:.3g}: {score:.1f} %"
            for weight, score in sorted(self.scores.items())
            if weight not in (0.0, self.weight)
        )
        others = f" ({tried})" if tried else ""
        on = f"on {self.held_out}"
        by = {"probability": "by the probability of the right label", "score": "by the score"}[self.by]
        if not self.weight:
            return (
                f"weight 0 was chosen {by}: {without:.1f} % {on}; every weight that was tried costs more than "
                f"{self.margin:.1f} points{others}"
            )
        return (
            f"weight {self.weight:.3g} was chosen {by}: {self.scores[self.weight]:.1f} % {on}, and {without:.1f} % "
            f"without a penalty; up to {self.margin:.1f} points less were allowed{others}"
        )


def weight_notes(folder: Path) -> list[str]:
    """What was chosen for the stage in this folder, and why; empty if nothing was."""
    try:
        return [Tried.model_validate_json((folder / WEIGHTS_TRIED_FILE).read_text(encoding="utf-8")).words]
    except (OSError, ValueError, KeyError):
        return []
