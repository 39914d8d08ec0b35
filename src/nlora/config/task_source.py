"""An entry of a configuration's `tasks`.

>>> TaskSource(name="tickets", train="a.jsonl", test="b.jsonl", labels=["network", "billing"]).labels
('network', 'billing')
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from string import Formatter
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from nlora.config.outside_code import Reference
from nlora.config.yaml_positions import by_label
from nlora.errors import did_you_mean

OF_LABELS = ("accuracy", "macro_f1")
METRICS = (*OF_LABELS, "exact_match", "rougeL", "edit_similarity", "sari")
_SOURCE = (
    "a JSONL, JSON, CSV, TSV or Parquet file (also .gz) with the fields sentence (or input, or text) and label (or "
    "output), or messages (a conversation), a pattern (data/*.jsonl), a folder saved by datasets, or "
    "`hub:<data set>[:configuration][/split]`."
)


class Columns(BaseModel):
    """The names of the columns of a task's files or data set."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: str | None = Field(
        None, min_length=1, description="The column of the text; null: sentence, or else input, or else text."
    )
    label: str | None = Field(
        None, min_length=1, description="The column of the answer; null: label, or else output."
    )
    messages: str | None = Field(
        None,
        min_length=1,
        description="The column of a conversation, instead of text and answer; null: messages, or else conversations.",
    )


def template_pieces(template: str) -> tuple[tuple[str, str | None], ...]:
    """(text, column of the place after it) for each place of a template; the last may have text only.

    Raises ValueError if the braces do not match, or a place is not just the name of a column.

    >>> template_pieces("Premise: {premise}. {{yes}}")
    (('Premise: ', 'premise'), ('. {', None), ('yes}', None))
    """
    way_out = "a place is {column}, and {{ and }} are braces of the text"
    try:
        pieces = list(Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"{error}; {way_out}") from error
    if any(column == "" or form or conversion for _, column, form, conversion in pieces):
        raise ValueError(f"a place has more or less in it than the name of a column; {way_out}")
    return tuple((text, column) for text, column, _, _ in pieces)


class TaskSource(BaseModel):
    """A task with files of its own, or a data set of the benchmark by its name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1, pattern=r"^[^/\\\x00-\x1f]+$", description="Unique within the run.")
    type: str | None = Field(None, description="Kind of task as the prompt names it; null: the task's name.")
    train: str | None = Field(None, description=f"Training examples: {_SOURCE}")
    test: str | None = Field(None, description=f"Test examples: {_SOURCE}")
    test_share: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Instead of test: this share of the texts of train, of each label, is not trained on, but tested.",
    )
    adapter: str | None = Field(
        None,
        description="A LoRA adapter that has learned the task already, instead of 'train': a folder in PEFT's format "
        "or a hub id. Nothing is trained; 'test' is optional. The key after is short for such entries.",
    )
    quoting: bool | None = Field(
        None,
        description="Whether cells of the task's CSV and TSV files may be quoted; null: in CSV they may, in TSV "
        "a quote is a character as any other (as in GLUE's files).",
    )
    columns: Columns = Field(default_factory=Columns)
    template: str | None = Field(
        None,
        description="The text, made of several columns: a text with {column} places, instead of columns.text.",
    )
    instruction: str | None = Field(None, description="What the model should do with each text.")
    labels: tuple[str, ...] | None = Field(
        None, description="The label words; without them, answers are free text, scored by ROUGE-L."
    )
    metric: str | None = Field(
        None,
        description="What the task is scored by: accuracy or macro_f1 (with labels), exact_match, rougeL, "
        "edit_similarity (of the letters), sari (of a simplified text), or a function of your own, as "
        "./score.py:my_function or module:my_function; null: exact_match with labels, rougeL for free text "
        "(exact_match under protocol: released).",
    )
    label_names: dict[str, str] | None = Field(
        None,
        description="The label word of each value that the files have: a list (of 0, 1, ...), or a mapping from value "
        "to word. The words are the labels if labels is not set.",
    )

    @field_validator("label_names", mode="before")
    @classmethod
    def _names_by_value(cls, names: Any) -> Any:
        if isinstance(names, Mapping):
            return by_label(names)
        if isinstance(names, Sequence) and not isinstance(names, str):
            return {str(i): name for i, name in enumerate(names)}
        if names is None:
            return None
        raise ValueError("must be a list of words, or a mapping from value to word")

    @field_validator("metric")
    @classmethod
    def _known_metric(cls, metric: str | None) -> str | None:
        if metric is None or metric in METRICS:
            return metric
        if ":" in metric:
            Reference.of(metric)
            return metric
        own = f"{metric}:FUNCTION" if metric.endswith(".py") else "score.py:FUNCTION"
        known = f"; the metrics are {', '.join(METRICS)}, or a function of your own: {own}"
        raise ValueError(f"unknown metric '{metric}'{did_you_mean(metric, METRICS) or known}")

    @field_validator("template")
    @classmethod
    def _valid_template(cls, template: str | None) -> str | None:
        if template is not None and not any(column for _, column in template_pieces(template)):
            raise ValueError("has no place for a column, such as {text}")
        return template

    @model_validator(mode="before")
    @classmethod
    def _labels_from_their_names(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("labels") is None:
            names = values.get("label_names")
            words = (
                list(names.values() if isinstance(names, dict) else names)
                if isinstance(names, dict | list)
                else []
            )
            if words and all(isinstance(word, str) for word in words):
                return {**values, "labels": list(dict.fromkeys(words))}
        return values

    @model_validator(mode="after")
    def _both_files_or_none(self) -> TaskSource:
        if self.test is not None and self.test_share is not None:
            raise ValueError(f"task '{self.name}' sets test and test_share; keep one of them")
        if self.adapter is not None and self.train is not None:
            raise ValueError(f"task '{self.name}' has an 'adapter' and a 'train' file; leave one of them out")
        no_test = self.test is None and self.test_share is None
        if (self.train is None) != no_test and (self.adapter is None or self.test is None):
            missing = "train" if self.train is None else "test"
            way_out = (
                "; without one, test_share: 0.1 tests on a tenth of 'train'" if missing == "test" else ""
            )
            what = f"has no '{missing}' file; a task with files of its own needs both{way_out}"
            raise ValueError(f"task '{self.name}' {what}")
        return self

    @model_validator(mode="after")
    def _quoting_of_a_table(self) -> TaskSource:
        files = (self.train or "", self.test or "")
        if self.quoting is not None and not any(
            f.lower().removesuffix(".gz").endswith((".csv", ".tsv")) for f in files
        ):
            raise ValueError(f"task '{self.name}' sets quoting, but has no CSV or TSV file; leave it out")
        return self

    @model_validator(mode="after")
    def _fields_of_files(self) -> TaskSource:
        if self.template is not None and self.columns.text is not None:
            raise ValueError(
                f"task '{self.name}' sets columns.text and template; the template makes the text, keep one"
            )
        if self.columns.messages is not None and (
            self.template or self.label_names or self.columns.text or self.columns.label
        ):
            raise ValueError(
                f"task '{self.name}' sets columns.messages, so text and answer are in the conversation; leave "
                "columns.text, columns.label, template and label_names out"
            )
        for word in (self.label_names or {}).values():
            if self.labels is not None and word not in self.labels:
                raise ValueError(
                    f"task '{self.name}': label_names has '{word}', which is not one of its labels: "
                    + ", ".join(self.labels)
                )
        given = {
            "columns": self.columns != Columns(),
            "template": self.template,
            "label_names": self.label_names,
        }
        name = next((key for key, value in given.items() if value), None)
        if name and self.train is None and self.test is None:
            raise ValueError(f"task '{self.name}' sets {name}, but has no files of its own; leave it out")
        return self
