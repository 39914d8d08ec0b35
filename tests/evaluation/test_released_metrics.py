"""Our averages of the accuracy matrices that O-LoRA's authors released, against reference/paper_facts.md, section 5."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nlora.evaluation.continual_metrics import summarize

# Run: average accuracy, backward transfer, the last row; as printed there.
PRINTED = {
    "order1_olora": (78.37, -1.18, "97.74 56.07 71.04 88.62"),
    "order1_icrlora": (68.62, -14.55, "79.50 40.82 64.14 90.01"),
    "order1_seqlora": (62.88, None, "59.05 39.71 62.54 90.20"),
    "order1_seqft": (67.77, -14.50, "79.53 52.67 48.84 90.03"),
    "long_olora": (72.17, -0.73,
                   "62.14 60.00 61.24 73.21 64.00 72.79 69.68 94.93 "
                   "91.97 98.41 86.42 65.20 61.14 69.45 52.04"),
    "long_icrlora": (58.44, -19.44,
                   "37.08 37.62 39.11 44.64 55.00 42.53 52.71 92.95 "
                   "87.96 71.67 78.26 72.26 44.06 65.23 55.49"),
    "long_seqlora": (32.04, -47.96,
                   "10.97 2.99 0.01 0.00 22.00 42.01 0.00 68.13 "
                   "50.92 37.03 52.13 20.71 44.95 65.75 63.01"),
}  # fmt: skip
HALF_A_DIGIT = 0.005 + 1e-9  # 62.875 is printed as 62.88


@pytest.fixture(scope="module")
def released(shared: Path) -> dict[str, Any]:
    file = shared / "reference" / "olora_released_results.json"
    runs: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))["runs"]
    return runs


def test_these_are_all_the_released_runs(released: dict[str, Any]) -> None:
    assert released.keys() == PRINTED.keys()


@pytest.mark.parametrize("name", PRINTED)
def test_averages_to_the_printed_digit(name: str, released: dict[str, Any]) -> None:
    R = released[name]["R"]
    accuracy, transfer, last = PRINTED[name]
    averages = summarize(R)
    assert averages["average_accuracy"] == pytest.approx(accuracy, abs=HALF_A_DIGIT)
    assert [f"{score:.2f}" for score in R[-1]] == last.split()
    if transfer is None:
        assert averages["backward_transfer"] is None
    else:
        assert averages["backward_transfer"] == pytest.approx(transfer, abs=HALF_A_DIGIT)
        assert averages["forgetting"] == pytest.approx(released[name]["forgetting_mean(max-final)"], abs=1e-4)


def test_the_run_without_its_third_stage_has_two_of_three_terms(released: dict[str, Any]) -> None:
    """A mean over the existing scores is another quantity; leaving the task out gives it explicitly."""
    R = released["order1_seqlora"]["R"]
    assert R[2] == [None] * 4
    there = (0, 1, 3)
    without = summarize([[R[k][i] for i in there] for k in there])
    assert without["backward_transfer"] == pytest.approx(-29.21, abs=HALF_A_DIGIT)


def test_the_pooled_score_differs_from_the_mean_if_tasks_differ_in_size(released: dict[str, Any]) -> None:
    """Four tasks of 7600 test examples pool to the macro mean; fifteen tasks of 56 to 7600 do not."""
    sizes = {"CB": 56, "COPA": 100, "RTE": 277, "SST-2": 872, "MultiRC": 4848, "BoolQA": 3270, "WiC": 638}
    for name, apart in (("order1_olora", 0.0), ("long_olora", 1.7)):
        run = released[name]
        n = [sizes.get(task, 7600) for task in run["tasks"]]
        pooled = sum(size * score for size, score in zip(n, run["R"][-1], strict=True)) / sum(n)
        assert pooled == pytest.approx(run["micro_EM_final"], abs=1e-3)
        macro = summarize(run["R"])["average_accuracy"]
        assert macro is not None
        assert pooled - macro == pytest.approx(apart, abs=0.05)
