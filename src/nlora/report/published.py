"""The published results on the benchmark's orders, from published.yaml, which names the source of each number.

>>> order = order_of(("dbpedia", "amazon", "yahoo", "agnews"))
>>> order, {row.average_accuracy for row in published_results(order) if row.name == "N-LoRA"} == {79.2, 77.2}
('order_1', True)

An order is recognized by its tasks' names alone. The published numbers are from other models and another protocol than
most runs; each table's note names them and must be shown with its numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Literal

from pydantic import Field, model_validator

from nlora.config.frozen import Frozen
from nlora.config.yaml_positions import read_yaml

PUBLISHED_FILE = "published.yaml"


class PublishedRow(Frozen):
    """One method's numbers, one for each order of its table."""

    method: str = Field(description="The method's name in nlora, even if nlora does not have it.")
    name: str = Field(description="The papers' name of the method.")
    origin: Literal["authors", "cited"]
    average_accuracy: tuple[float | None, ...]
    backward_transfer: tuple[float | None, ...] | None = None


class PublishedTable(Frozen):
    """Numbers from one origin for one model."""

    label: str = Field(description="The kind of numbers: published, released results.")
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
    """One method's published numbers on one order, in percent. None: not published."""

    method: str
    name: str
    table: PublishedTable
    average_accuracy: float | None
    backward_transfer: float | None


@cache
def published() -> Published:
    """The content of published.yaml, validated."""
    text = resources.files("nlora.report").joinpath(PUBLISHED_FILE).read_text(encoding="utf-8")
    data: Any = read_yaml(text, PUBLISHED_FILE).data
    return Published.model_validate(data)


def order_of(tasks: Sequence[str]) -> str | None:
    """The name of the published order with these tasks, ignoring case; None if there is none."""
    wanted = [task.casefold() for task in tasks]
    for name, order in published().orders.items():
        if [task.casefold() for task in order] == wanted:
            return name
    return None


def published_results(order: str) -> list[PublishedResult]:
    """All published numbers on an order, in the file's sequence."""
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
