"""Differences between variants over the seeds and test examples that both have."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from nlora.evaluation.answer import Answer
from nlora.runs.paired_bootstrap import Scored, difference, example_digest, scored
from nlora.runs.summary import Summary


def run(
    right: Sequence[int], seed: int = 1, metric: str = "exact_match", first: int = 0, test: str = "t"
) -> Scored:
    """One task, whose examples are answered rightly (1) or wrongly (0)."""
    answers = {
        (str(i), f"text {i}", "yes", 0): Answer(f"text {i}", "yes", "yes" if is_right else "no")
        for i, is_right in enumerate(right, start=first)
    }
    accuracy = 100 * sum(right) / len(right)
    summary = Summary(
        schema=1, status="complete", name="x", method="m", model="t", seed=seed, tasks=("a",), R=((accuracy,),),
        average_accuracy=accuracy, metrics={"a": metric},
        digests={
            "a": {"train": {"sha256": "x", "count": 9}, "test": {"sha256": test, "count": 2}, "prompt_sha256": "p"}
        },
    )  # fmt: skip
    return scored(summary, {"a": answers})


def test_the_mean_and_the_interval_of_one_seed() -> None:
    one, other = [1] * 60 + [0] * 40, [1] * 30 + [0] * 10 + [1] * 10 + [0] * 50
    found = difference([run(one)], [run(other)])
    assert found is not None
    assert found.mean == pytest.approx(20)
    assert (found.seeds, found.better) == ((1,), 1)
    changes = [a - b for a, b in zip(one, other, strict=True)]
    error = math.sqrt(sum((change - 0.2) ** 2 for change in changes)) / 100
    assert found.interval is not None
    assert found.interval.high - found.interval.low == pytest.approx(2 * 1.96 * 100 * error, rel=0.1)


def test_seeds_add_their_spread_and_only_common_ones_count() -> None:
    half = [1, 0] * 10
    variants = [run([1] * 20, 1), run([0] * 20, 2), run(half, 7)]
    found = difference(variants, [run(half, 1), run(half, 2), run(half, 3)])
    assert found is not None
    assert (found.mean, found.seeds, found.better) == (0.0, (1, 2), 1)
    assert found.interval is not None
    assert found.interval.low < -40  # both draws of the second seed
    assert found.interval.high > 40


def test_equal_answers_have_no_difference() -> None:
    found = difference([run([1, 0, 1])], [run([1, 0, 1])])
    assert found is not None
    assert found.interval == (0.0, 0.0)


def test_the_interval_is_the_same_from_a_file_that_keeps_no_text() -> None:
    """As of benchmarks/results, which has the first ten digits of each digest."""

    def kept(of: Scored) -> Scored:
        assert of.scores is not None
        return Scored(of.summary, {task: {k[:10]: v for k, v in s.items()} for task, s in of.scores.items()})

    right = [[(i * factor) % 7 > 2 for i in range(50)] for factor in (1, 2, 3, 4)]
    one, other = (
        [run(answers, seed) for seed, answers in enumerate(half)] for half in (right[:2], right[2:])
    )
    found = difference(one, other)
    assert found is not None
    assert found.interval is not None
    assert found.interval.low < found.interval.high
    assert found == difference([kept(each) for each in one], [kept(each) for each in other])


def test_the_same_examples_at_other_rows_of_a_file_are_the_same_examples() -> None:
    one, other = [1] * 30 + [0] * 20, [1, 0] * 25
    assert difference([run(one)], [run(other, first=5)]) == difference([run(one)], [run(other)])


def test_answers_made_in_another_way_are_not_compared() -> None:
    one = run([1, 0])

    def other(**changes: object) -> Scored:
        return Scored(one.summary.model_copy(update=changes), one.scores)

    assert difference([other(decode={"a": "labels"})], [other(decode={"a": "labels"})]) is not None
    assert difference([other(decode={"a": "labels"})], [other(decode={"a": "generate"})]) is None
    assert difference([other(decode={"a": "labels"})], [one]) is not None  # of a version that did not say
    assert difference([other(protocol="released")], [other(protocol="repaired")]) is None


def test_what_is_not_alike_is_not_compared() -> None:
    assert difference([run([1, 0])], [run([1, 0], seed=2)]) is None
    assert difference([run([1, 0])], [run([1, 0], first=5, test="u")]) is None
    assert difference([run([1, 0])], [run([1, 0, 1])]) is None
    assert difference([run([1, 0])], [run([1, 0], metric="rougeL")]) is None
    f1 = difference([run([1, 0], metric="macro_f1")], [run([0, 0], metric="macro_f1")])
    assert f1 is not None
    assert (f1.mean, f1.interval) == (50.0, None)
    assert difference([run([1, 0], metric="macro_f1")], [run([0, 0], metric="macro_f1", test="u")]) is None


def test_free_text_counts_by_its_score_not_by_whether_it_is_right() -> None:
    summary = run([1]).summary.model_copy(update={"metrics": {"a": "rougeL"}})
    key = ("1", "t", "the red fox", 0)
    found = scored(summary, {"a": {key: Answer("t", "the red fox", "the fox")}})
    assert found.scores == {"a": {example_digest(key): 0.8}}
    assert scored(summary, {}).scores is None


def test_averages_over_other_tasks_are_not_compared_and_a_task_without_scores_changes_nothing() -> None:
    """As of runs that begin from an adapter, of which one has no test examples."""

    def after_old(right: Sequence[int], old: Sequence[int]) -> Scored:
        of_a, of_old = (
            {
                (str(i), f"text {i}", "yes", 0): Answer(f"text {i}", "yes", "yes" if is_right else "no")
                for i, is_right in enumerate(each)
            }
            for each in (right, old)
        )
        score = 100 * sum(old) / len(old) if old else None
        summary = run(right).summary
        changes = {"tasks": ("old", "a"), "R": ((score, None), (score, summary.average_accuracy))}
        return scored(summary.model_copy(update=changes), {"old": of_old, "a": of_a})

    one, other = [1, 1, 0, 1], [1, 0, 0, 1]
    plain = difference([run(one)], [run(other)])
    assert plain is not None
    assert plain.interval is not None
    assert difference([after_old(one, [])], [after_old(other, [])]) == plain
    assert difference([after_old(one, [])], [after_old(other, [1, 0])]) is None
