"""An entry of a configuration's `tasks`.

>>> TaskSource(name="tickets", train="a.jsonl", test="b.jsonl", labels=["network", "billing"]).labels
('network', 'billing')
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, model_validator

_SOURCE = (
    "a JSONL, JSON, CSV, TSV or Parquet file with the fields sentence (or input, or text) and label (or output), or "
    "hub:<data set>[:configuration][/split]."
)


class TaskSource(BaseModel):
    """A task with files of its own, or a data set of the benchmark by its name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1, pattern=r"^[^/\\\x00-\x1f]+$", description="Unique within the run.")
    type: str | None = Field(None, description="Kind of task as the prompt names it; null: the task's name.")
    train: str | None = Field(None, description=f"Training examples: {_SOURCE}")
    test: str | None = Field(None, description=f"Test examples: {_SOURCE}")
    adapter: str | None = Field(
        None,
        description="A LoRA adapter that has learned the task already, instead of 'train': a folder in PEFT's format "
        "or a hub id. Nothing is trained; 'test' is optional. See the key after.",
    )
    quoting: bool | None = Field(
        None,
        description="Whether cells of the task's CSV and TSV files may be quoted; null: in CSV they may, in TSV "
        "a quote is a character as any other (as in GLUE's files).",
    )
    instruction: str | None = Field(None, description="What the model should do with each text.")
    labels: tuple[str, ...] | None = Field(
        None, description="The label words; without them, answers are free text, scored by ROUGE-L."
    )

    @model_validator(mode="after")
    def _both_files_or_none(self) -> TaskSource:
        if self.adapter is not None and self.train is not None:
            raise ValueError(f"task '{self.name}' has an 'adapter' and a 'train' file; leave one of them out")
        if self.adapter is None and (self.train is None) != (self.test is None):
            missing = "test" if self.test is None else "train"
            raise ValueError(
                f"task '{self.name}' has no '{missing}' file; a task with files of its own needs both"
            )
        return self

    @model_validator(mode="after")
    def _quoting_of_a_table(self) -> TaskSource:
        files = (self.train or "", self.test or "")
        if self.quoting is not None and not any(f.lower().endswith((".csv", ".tsv")) for f in files):
            raise ValueError(f"task '{self.name}' sets quoting, but has no CSV or TSV file; leave it out")
        return self
