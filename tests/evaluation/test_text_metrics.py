"""Text scores: golden numbers of the released scorer, and invariants."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nlora.data.task import Example, Task
from nlora.evaluation.answer import graded
from nlora.evaluation.text_metrics import (
    aggregate,
    exact_match,
    grouped,
    normalize,
    released_scores,
    rouge,
    told_apart,
)


@pytest.fixture(scope="module")
def golden(shared: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((shared / "golden" / "metrics.json").read_text(encoding="utf-8"))
    assert len(loaded["pairs"]) == 54
    return loaded


def column(golden: dict[str, Any], name: str) -> list[str]:
    return [pair[name] for pair in golden["pairs"]]


def test_each_released_pair(golden: dict[str, Any]) -> None:
    for pair in golden["pairs"]:
        prediction, reference = pair["prediction"], pair["reference"]
        assert normalize(prediction) == pair["norm_pred"]
        assert normalize(reference) == pair["norm_ref"]
        assert exact_match(prediction, reference) is pair["exact_match"], pair
        assert rouge(prediction, reference) == (pair["rouge1"], pair["rougeL"]), pair


def test_released_aggregates_to_the_printed_digit(golden: dict[str, Any]) -> None:
    predictions, references = column(golden, "prediction"), column(golden, "reference")
    by_type = golden["compute_grouped_metrics_by_task"]
    by_dataset = golden["compute_grouped_metrics_by_dataset"]
    assert aggregate(predictions, references) == golden["compute_metrics"]
    assert grouped(predictions, references, column(golden, "task")) == by_type
    assert grouped(predictions, references, column(golden, "dataset")) == by_dataset
    assert released_scores(predictions, references, column(golden, "task"), column(golden, "dataset")) == {
        **golden["compute_metrics"],
        **by_type,
        **by_dataset,
    }


def test_a_data_set_wins_over_a_type_of_the_same_name() -> None:
    scores = released_scores(["a", "b"], ["a", "a"], types=["QA", "COPA"], datasets=["COPA", "other"])
    assert scores["exact_match_for_COPA"] == 100.0  # the type COPA scored 0
    assert scores["exact_match_for_QA"] == 100.0
    assert scores["exact_match_for_other"] == 0.0


def test_rounds_to_four_digits(golden: dict[str, Any]) -> None:
    assert aggregate(["a", "b", "c"], ["a", "x", "y"])["exact_match"] == 33.3333
    assert golden["rounding_example_1_of_3"]["exact_match"] == 33.3333


def test_nothing_to_score_is_an_error() -> None:
    with pytest.raises(ValueError, match="no predictions to score"):
        aggregate([], [])
    with pytest.raises(ValueError, match="1 predictions, 2 references"):
        aggregate(["a"], ["a", "b"])
    with pytest.raises(ValueError, match="2 predictions, 2 references, 1 groups"):
        grouped(["a", "b"], ["a", "b"], ["g"])


@given(st.text())
def test_normalizing_twice_changes_nothing_and_a_text_matches_itself(text: str) -> None:
    # A capital I with a dot lowers to two characters, one a combining dot, which lowers to itself.
    assert normalize(normalize(text)) == normalize(text)
    assert exact_match(text, text)


@given(
    st.lists(
        st.tuples(st.text("ab ", max_size=4), st.text("ab ", max_size=4), st.sampled_from("XY")), min_size=1
    )
)
def test_the_pooled_score_is_the_groups_weighted_by_their_size(pairs: list[tuple[str, str, str]]) -> None:
    predictions, references, groups = (list(values) for values in zip(*pairs, strict=True))
    by_group = grouped(predictions, references, groups)
    pooled = aggregate(predictions, references)
    for score in ("exact_match", "rouge1", "rougeL"):
        weighted = sum(groups.count(g) * by_group[f"{score}_for_{g}"] for g in set(groups)) / len(groups)
        assert weighted == pytest.approx(pooled[score], abs=2e-4)


def test_importing_loads_neither_rouge_nor_torch() -> None:
    code = (
        "import sys, nlora.evaluation.text_metrics, nlora.evaluation.continual_metrics\n"
        "print([name for name in ('rouge_score', 'nltk', 'torch') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("labels", "apart"),
    [
        (("yes", "no"), True),
        (("-1", "1"), False),
        (("+", "-"), False),
        (("yes", "no", "?"), False),  # no answer at all would be right for "?"
        ((), True),
    ],
)
def test_labels_that_normalization_confuses_with_each_other_or_with_nothing(
    labels: tuple[str, ...], apart: bool
) -> None:
    assert told_apart(labels) == apart
    test = tuple(Example(str(i), "text", label) for i, label in enumerate(labels))
    task = Task("t", "t", "", labels, (), test)
    silent = graded(task, [""] * len(labels))
    assert not any(answer.is_right for answer in silent)
