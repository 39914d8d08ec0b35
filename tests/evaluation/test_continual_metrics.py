"""Metrics of accuracy matrices: computed by hand, of the released runs, and invariants."""

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nlora.evaluation.continual_metrics import summarize, summarize_scored

Matrix = list[list[float | None]]

# AA and BWT as printed in the reference table of the released O-LoRA runs; order1_seqlora lacks its third
# row.
PRINTED = {
    "order1_olora": (78.37, -1.18),
    "order1_icrlora": (68.62, -14.55),
    "order1_seqlora": (62.88, None),
    "order1_seqft": (67.77, -14.50),
    "long_olora": (72.17, -0.73),
    "long_icrlora": (58.44, -19.44),
    "long_seqlora": (32.04, -47.96),
}


def matrices(tasks: int) -> st.SearchStrategy[list[list[float]]]:
    scores = st.floats(0, 100, allow_subnormal=False)
    return st.lists(st.lists(scores, min_size=tasks, max_size=tasks), min_size=tasks, max_size=tasks)


full = st.integers(1, 6).flatmap(matrices)


def test_three_tasks_by_hand() -> None:
    R: Matrix = [[90, 30, 20], [95, 80, 40], [60, 70, 50]]
    assert summarize(R, zero_shot=[10, 20, 30]) == {
        "average_accuracy": 60.0,  # (60 + 70 + 50) / 3
        "backward_transfer": -20.0,  # ((60 - 90) + (70 - 80)) / 2
        "backward_transfer_over_all": pytest.approx(-40 / 3),  # the same sum / 3
        "forgetting": 22.5,  # ((95 - 60) + (80 - 70)) / 2
        "forward_transfer": 10.0,  # ((30 - 20) + (40 - 30)) / 2
    }


def test_a_task_without_scores_still_is_a_stage_in_which_others_are_forgotten() -> None:
    """As one that came with an adapter and no test examples: last, in the middle, and first."""
    last = summarize_scored([[80, None, None], [70, 90, None], [10, 20, None]])
    assert last["average_accuracy"] == 15
    assert last["backward_transfer"] == last["backward_transfer_over_all"] == -70
    assert last["forgetting"] == 70
    middle = summarize_scored([[50, None, None], [90, None, None], [60, None, 75]])
    assert (middle["average_accuracy"], middle["backward_transfer"], middle["forgetting"]) == (67.5, 10, 30)
    assert middle["backward_transfer_over_all"] == 5
    first = summarize_scored([[None] * 3, [None, 80, None], [None, 60, 70]], zero_shot=[None, 10, 20])
    assert first == summarize([[80, None], [60, 70]], zero_shot=[10, 20])
    # Of a task learned second, what the first stage leaves it is known, whatever that stage learned.
    ahead = summarize_scored([[None, 60, 50], [None, 90, 40], [None, 80, 95]], zero_shot=[None, 20, 30])
    assert ahead["forward_transfer"] == ((60 - 20) + (40 - 30)) / 2
    whole: Matrix = [[90, 30, 20], [95, 80, 40], [60, 70, 50]]
    assert summarize_scored(whole) == summarize(whole)


def test_a_metric_needs_only_the_scores_in_its_formula() -> None:
    lower: Matrix = [[90, None, None], [95, 80, None], [60, 70, 50]]
    assert summarize(lower, zero_shot=[10, 20, 30])["forward_transfer"] is None
    assert summarize(lower)["backward_transfer"] == -20.0
    # Forgetting needs R[2][1], backward transfer does not.
    assert summarize([[90, None, None], [None, 80, None], [60, 70, 50]]) == {
        "average_accuracy": 60.0,
        "backward_transfer": -20.0,
        "backward_transfer_over_all": pytest.approx(-40 / 3),
        "forgetting": None,
        "forward_transfer": None,
    }
    assert summarize([[90, 30], [95, 80]], zero_shot=[None, 20])["forward_transfer"] == 10.0


def test_a_single_task_has_only_an_average() -> None:
    assert summarize([[75.0]], zero_shot=[25.0]) == {
        "average_accuracy": 75.0,
        "backward_transfer": None,
        "backward_transfer_over_all": None,
        "forgetting": None,
        "forward_transfer": None,
    }


def test_an_unfinished_run_has_no_averages_yet() -> None:
    nothing = dict.fromkeys(summarize([[90.0]]))
    assert len(nothing) == 5
    assert summarize([[90.0, None]]) == nothing
    assert summarize([[90.0, None], [None, None]]) == nothing


@pytest.mark.parametrize("name", PRINTED)
def test_the_released_runs_to_the_printed_digit(shared: Path, name: str) -> None:
    text = (shared / "reference" / "olora_released_results.json").read_text(encoding="utf-8")
    run: dict[str, Any] = json.loads(text)["runs"][name]
    found = summarize(run["R"])
    average, backward = PRINTED[name]
    assert found["average_accuracy"] is not None
    assert found["average_accuracy"] == pytest.approx(run["AA_macro_final"], abs=6e-5)
    assert found["average_accuracy"] == pytest.approx(average, abs=0.0051)
    if backward is None:
        assert found["backward_transfer"] is None
        assert found["forgetting"] is None
    else:
        assert found["backward_transfer"] == pytest.approx(backward, abs=0.0051)
        assert found["backward_transfer"] == pytest.approx(run["BWT_mean(final-diagonal)"], abs=6e-5)
        assert found["forgetting"] == pytest.approx(run["forgetting_mean(max-final)"], abs=6e-5)


@given(full)
def test_forgetting_is_at_least_the_negative_backward_transfer(R: Matrix) -> None:
    found = summarize(R)
    if len(R) > 1:
        assert found["forgetting"] is not None
        assert found["backward_transfer"] is not None
        # The best score since learning is at least the score right after learning.
        assert found["forgetting"] >= -found["backward_transfer"] - 1e-9


@given(full, st.floats(-40, 40))
def test_shifting_every_score_shifts_only_the_average(R: list[list[float]], shift: float) -> None:
    inside = [
        [40 + score / 5 for score in row] for row in R
    ]  # 40 to 60, so that a shift stays inside 0 to 100
    zero_shot = inside[0]
    shifted = summarize(
        [[x + shift for x in row] for row in inside], zero_shot=[x + shift for x in zero_shot]
    )
    plain = summarize(inside, zero_shot=zero_shot)
    for key, value in plain.items():
        if value is None:
            assert shifted[key] is None
        else:
            assert shifted[key] == pytest.approx(
                value + (shift if key == "average_accuracy" else 0), abs=1e-9
            )


@given(st.integers(2, 6), st.floats(0, 100))
def test_a_model_that_never_changes_transfers_nothing(tasks: int, score: float) -> None:
    found = summarize([[score] * tasks] * tasks, zero_shot=[score] * tasks)
    assert found["average_accuracy"] == pytest.approx(score)
    assert [found[key] for key in ("backward_transfer", "forgetting", "forward_transfer")] == [0, 0, 0]


@given(full, st.randoms(use_true_random=False))
def test_the_order_of_the_last_row_does_not_matter_to_the_average(
    R: Matrix, generator: random.Random
) -> None:
    last = R[-1].copy()
    generator.shuffle(last)
    assert summarize([*R[:-1], last])["average_accuracy"] == summarize(R)["average_accuracy"]


@pytest.mark.parametrize(
    ("R", "message"),
    [
        ([], "empty"),
        ([[]], "empty"),
        ([[1.0, 2.0], [3.0]], "row 2 has 1 columns, but row 1 has 2"),
        ([[1.0], [2.0]], "row 2: there are only 1 tasks"),
        ([[1.0, 2.0], [3.0, math.inf]], "row 2, column 2: inf is not a percentage"),
        (5, "the accuracy matrix must be a list, not 5"),
        ("90", "the accuracy matrix must be a list, not '90'"),
        (np.zeros(2), r"row 1 must be a list, not 0\.0"),
        (np.zeros((0, 0)), "empty"),
        ([[1.0, -0.5], [3.0, 4.0]], r"row 1, column 2: -0\.5"),
        ([[1.0, 2.0], [100.5, 4.0]], r"row 2, column 1: 100\.5"),
        ([["90"]], "row 1, column 1: '90' is not a number"),
        ([[True]], "row 1, column 1: True is not a number"),
    ],
)
def test_invalid_matrices_are_refused(R: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        summarize(R)


class Named:
    """As `Run.accuracy_matrix`: an array under names."""

    values = np.array([[90, np.nan], [70, 80]])


@pytest.mark.parametrize("R", [Named(), Named.values, list(Named.values), Named.values.tolist()])
def test_arrays_and_accuracy_matrices_are_taken_with_nan_for_no_score(R: Any) -> None:
    assert summarize(R, zero_shot=np.array([np.nan, 10])) == summarize(
        [[90, None], [70, 80]], zero_shot=[None, 10]
    )


def test_zero_shot_is_checked_too() -> None:
    with pytest.raises(ValueError, match="zero_shot must be a list, not 5"):
        summarize([[1, 2], [3, 4]], zero_shot=5)
    with pytest.raises(ValueError, match="zero_shot: 1 scores for 2 tasks"):
        summarize([[1, 2], [3, 4]], zero_shot=[1])
    with pytest.raises(ValueError, match="zero_shot, column 2: 101"):
        summarize([[1, 2], [3, 4]], zero_shot=[1, 101])
