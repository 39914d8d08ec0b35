"""The published numbers: the orders are the released ones, and the means those printed in the papers."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest

from nlora.report.published import order_of, published, published_results

STANDARD, LONG = ("order_1", "order_2", "order_3"), ("order_4", "order_5", "order_6")
# The averages as printed beside the numbers that they are the means of (T5-large, orders 1 to 3 and 4 to 6).
PRINTED = {
    "seqft": (28.5, 7.4), "seqlora": (43.7, 1.6), "inclora": (66.4, 61.2), "replay": (57.8, 54.2), "ewc": (50.3, 45.1),
    "lwf": (52.3, 46.9), "lfpt5": (72.7, 69.2), "migu": (76.6, 70.0), "olora": (75.8, 69.6), "nlora": (78.8, 72.4),
    "progprompt": (75.1, 77.9), "pertask": (70.0, 78.1), "mtl": (80.0, 76.5),
}  # fmt: skip


def accuracies(method: str, model: str, orders: tuple[str, ...], label: str = "published") -> list[float]:
    return [
        result.average_accuracy
        for order in orders
        for result in published_results(order)
        if (result.method, result.table.model, result.table.label) == (method, model, label)
        and result.average_accuracy is not None
    ]


@pytest.mark.parametrize("method", PRINTED)
def test_the_means_equal_the_printed_ones(method: str) -> None:
    for orders, printed in zip((STANDARD, LONG), PRINTED[method], strict=True):
        numbers = accuracies(method, "T5-large", orders)
        assert len(numbers) == 3
        # Some were rounded, LwF's was cut off.
        assert statistics.mean(numbers) == pytest.approx(printed, abs=0.07)


def test_llama_has_its_own_numbers() -> None:
    assert statistics.mean(accuracies("olora", "LLaMA-7B", STANDARD)) == pytest.approx(76.1, abs=0.051)
    assert statistics.mean(accuracies("nlora", "LLaMA-7B", STANDARD)) == pytest.approx(77.6, abs=0.051)
    assert not accuracies("nlora", "LLaMA-7B", LONG)


def test_an_order_is_recognized_by_its_tasks() -> None:
    for name, tasks in published().orders.items():
        assert order_of(tasks) == name
        assert order_of([task.lower() for task in tasks]) == name
        assert order_of(tasks[:-1]) is None
        assert order_of([tasks[1], tasks[0], *tasks[2:]]) is None
    assert len({frozenset(published().orders[name]) for name in STANDARD}) == 1
    assert {len(set(published().orders[name])) for name in LONG} == {15}


def test_the_released_results_are_means_of_the_released_matrices(shared: Path) -> None:
    """Average accuracy is the mean of the last row, backward transfer of its change since the diagonal."""
    runs = json.loads((shared / "reference/olora_released_results.json").read_text())["runs"]
    names = {"olora": "olora", "inclora": "icrlora", "seqlora": "seqlora", "seqft": "seqft"}
    checked = 0
    for order, prefix in (("order_1", "order1"), ("order_6", "long")):
        for result in published_results(order):
            if result.table.label != "released results":
                continue
            R = runs[f"{prefix}_{names[result.method]}"]["R"]
            last = R[-1]
            assert result.average_accuracy == pytest.approx(statistics.mean(last), abs=0.006)
            if result.backward_transfer is not None:
                changes = [last[i] - R[i][i] for i in range(len(last) - 1)]
                assert result.backward_transfer == pytest.approx(statistics.mean(changes), abs=0.006)
            checked += 1
    assert checked == 7
