"""The keys of `evaluate.general`: what the model knew before its first task, measured before and after every stage."""

from __future__ import annotations

from pydantic import Field, field_validator, model_validator

from nlora.config.frozen import Frozen

DEFAULT_TEXT = "default"
"""The value of `text` that means the text that comes with nlora."""


def text_in_words(name: str) -> str:
    """How messages call a text, by its name in the configuration.

    >>> text_in_words("default"), text_in_words("mine.txt")
    ('the text that comes with nlora', 'mine.txt')
    """
    return "the text that comes with nlora" if name == DEFAULT_TEXT else name


class GeneralOptions(Frozen):
    """A text whose perplexity is measured, and tasks of lm-evaluation-harness.

    >>> GeneralOptions().text, GeneralOptions(text=None, harness=["arc_easy"]).harness
    ('default', ('arc_easy',))
    """

    text: str | None = Field(
        DEFAULT_TEXT,
        min_length=1,
        description="The text whose perplexity is measured: a text file (UTF-8); default: the English text that comes "
        "with nlora; null: none.",
    )
    max_characters: int = Field(
        24000,
        ge=1,
        description="Only the first characters of the text are measured, whatever the model's tokens, so that models "
        "compare. The whole text that comes with nlora has 20659, about 4000 tokens.",
    )
    harness: tuple[str, ...] = Field(
        (),
        description="Tasks and groups of lm-evaluation-harness by name, such as arc_easy (pip install lm-eval). Their "
        "data come from the hub.",
    )
    harness_path: str | None = Field(
        None,
        min_length=1,
        description="A folder with task files (YAML) of your own for the harness. A task file may name Python code "
        "beside it, which is then run.",
    )
    harness_limit: int | None = Field(
        None, ge=1, description="Only the first examples of each task of the harness; null: all."
    )

    @field_validator("harness", mode="after")
    @classmethod
    def _each_once(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if twice := next((name for i, name in enumerate(names) if name in names[:i]), None):
            raise ValueError(f"'{twice}' is in it twice; leave one out")
        return names

    @model_validator(mode="after")
    def _something_to_measure(self) -> GeneralOptions:
        if self.text is None and not self.harness:
            raise ValueError(
                "has neither a text nor tasks of the harness; set text or harness, or leave general out"
            )
        if not self.harness and (self.harness_path or self.harness_limit):
            raise ValueError(
                "harness names no task, so harness_path and harness_limit have no use; name tasks"
            )
        return self
