"""The keys of `replay`: examples of earlier tasks that every method can train on again."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from nlora.config.frozen import Frozen


class ReplayOptions(Frozen):
    """How much of each task is kept for the later ones, and how these train on it.

    >>> ReplayOptions(memory=32, choose="hardest", share=0.5).in_words
    '32 examples of each earlier task, the hardest, as 0.5 of each batch'
    """

    memory: int = Field(
        0,
        ge=0,
        description="Training examples kept of each task, which the later tasks train on as well, with any method but "
        "replay and mtl; 0: none.",
    )
    tokens: int | None = Field(
        None,
        ge=1,
        description="Instead of memory: the most tokens, answers included, of all that is kept of a task.",
    )
    choose: Literal["stratified", "hardest"] = Field(
        "stratified",
        description="Which examples are kept: stratified, a seeded sample in proportion to the labels; hardest, those "
        "with the highest loss once their task is learned.",
    )
    share: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Share of each batch that is drawn from the kept examples, round after round; null: they are "
        "trained on like the new ones, once per epoch.",
    )

    @property
    def is_on(self) -> bool:
        """Whether anything is kept."""
        return self.memory > 0 or self.tokens is not None

    @property
    def by_loss(self) -> bool:
        """Whether a task's losses decide what is kept of it."""
        return self.is_on and self.choose == "hardest"

    @property
    def in_words(self) -> str:
        """The settings in a line for people; empty if nothing is kept."""
        if not self.is_on:
            return ""
        size = f"{self.tokens} tokens" if self.memory == 0 else f"{self.memory} examples"
        which = "the hardest" if self.choose == "hardest" else "sampled by label"
        how = "" if self.share is None else f", as {self.share:g} of each batch"
        return f"{size} of each earlier task, {which}{how}"

    @model_validator(mode="after")
    def _one_size(self) -> ReplayOptions:
        if self.memory and self.tokens is not None:
            raise ValueError(
                f"memory {self.memory} and tokens {self.tokens} exclude each other; set one of them"
            )
        if self.model_fields_set and not self.model_fields_set & {"memory", "tokens"}:
            raise ValueError("nothing says how much is kept; set memory, in examples of each task, or tokens")
        return self
