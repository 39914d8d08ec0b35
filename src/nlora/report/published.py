"""The published results on the benchmark's orders, from published.yaml, which says where each number comes from.

    order_of(("dbpedia", "amazon", "yahoo", "agnews"))       # "order_1"
    for row in published_results("order_1"):
        print(row.name, row.table.model, row.average_accuracy)    # O-LoRA T5-large 75.4

An order is recognized by its tasks' names alone. The published numbers belong to other models and to another protocol
than most runs; each table's note says which, and belongs under every table that shows its numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Literal

from pydantic import Field, model_validator

from nlora.config.schema import Frozen
from nlora.config.yaml_positions import read_yaml

PUBLISHED_FILE = "published.yaml"


class PublishedRow(Frozen):
    """One method's numbers; one entry for each order of its table."""

    method: str = Field(description="nlora's name of the method, also of those that it does not have.")
    name: str = Field(description="The papers' name of the method.")
    origin: Literal["authors", "cited"]
    average_accuracy: tuple[float | None, ...]
    backward_transfer: tuple[float | None, ...] | None = None


class PublishedTable(Frozen):
    """Numbers of one origin and one model."""

    label: str = Field(description="What kind of numbers: published, released results.")
    model: str
    orders: tuple[str, ...]
    note: str = Field(description="The protocol and the sources, for a footnote.")
    rows: tuple[PublishedRow, ...]

    @model_validator(mode="after")
    def _one_number_per_order(self) -> PublishedTable:
        for row in self.rows:
            for numbers in (row.average_accuracy, row.backward_transfer):
                if numbers is not None and len(numbers) != len(self.orders):
                    raise ValueError(f"{row.name}: {len(numbers)} numbers for {len(self.orders)} orders")
        return self


class Published(Frozen):
    """The whole of published.yaml."""

    orders: dict[str, tuple[str, ...]] = Field(description="Task names in order, by the recipe's name.")
    tables: tuple[PublishedTable, ...]


@dataclass(frozen=True, slots=True)
class PublishedResult:
    """What was published of one method on one order, in percent. None: not published."""

    method: str
    name: str
    table: PublishedTable
    average_accuracy: float | None
    backward_transfer: float | None


@cache
def published() -> Published:
    """The file's content, checked."""
    text = resources.files("nlora.report").joinpath(PUBLISHED_FILE).read_text(encoding="utf-8")
    data: Any = read_yaml(text, PUBLISHED_FILE).data
    return Published.model_validate(data)


def order_of(tasks: Sequence[str]) -> str | None:
    """The published order that these tasks are, whatever their case; None for any other sequence."""
    wanted = [task.casefold() for task in tasks]
    for name, order in published().orders.items():
        if [task.casefold() for task in order] == wanted:
            return name
    return None


def published_results(order: str) -> list[PublishedResult]:
    """Everything that was published on an order, in the file's sequence."""
    results = []
    for table in published().tables:
        if order not in table.orders:
            continue
        at = table.orders.index(order)
        for row in table.rows:
            accuracy = row.average_accuracy[at]
            transfer = None if row.backward_transfer is None else row.backward_transfer[at]
            if accuracy is not None or transfer is not None:
                results.append(PublishedResult(row.method, row.name, table, accuracy, transfer))
    return results
