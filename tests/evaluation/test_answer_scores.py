"""The score of an answer: several accepted answers, and functions of the user's own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nlora.config.schema import Config
from nlora.data.task import Example, Task
from nlora.errors import InputErrors, RunError
from nlora.evaluation.answer import Answer, graded, own_score, percent, right_probability
from nlora.evaluation.choices import both_or_all, metric_of, scoring_words
from nlora.evaluation.text_metrics import rouge_l
from nlora.evaluation.trace import identical
from nlora.runs.released_files import Prediction, predict_results

EXAMPLE = Example("7", "Who wrote it?", "Jane Austen", ("Austen", "the author of Emma"))


def test_the_best_accepted_answer_counts() -> None:
    def answer(text: str) -> Answer:
        return Answer("", "Jane Austen", text, others=("Austen", "the author of Emma"))

    assert [answer(text).is_right for text in ("jane austen.", "AUSTEN", "Jane")] == [True, True, False]
    close = answer("the author of Persuasion")
    each = [rouge_l(close.prediction, accepted) for accepted in close.accepted]
    assert each[0] == each[1] == 0 < each[2] < 1
    assert close.score("rougeL") == each[2]
    assert close.closest == ("the author of Persuasion", "the author of Emma")
    assert answer("austen").closest == ("austen", "Austen")
    assert answer("nothing").closest == ("nothing", "Jane Austen")
    assert Answer("", "-1", "1", exact=True, others=("1",)).is_right


def test_the_probability_of_the_right_label_counts_all_accepted_ones() -> None:
    test = (
        Example("0", "", "dog"),
        Example("1", "", "Cat", ("DOG",)),
        Example("2", "", "fish"),  # no label of the task
    )
    task = Task("animals", "TC", "", ("cat", "dog", "bird"), (), test)
    rows = [(0.5, 0.2, 0.3), (0.1, 0.6, 0.3), (0.2, 0.2, 0.6)]
    assert right_probability(task, rows) == pytest.approx(100 * (0.2 + 0.7 + 0.0) / 3)


def test_a_model_that_is_sure_has_its_accuracy_as_probability() -> None:
    """Labels that differ in case alone are compared to the letter."""
    draw = np.random.default_rng(0)
    for labels in (("cat", "dog", "bird"), ("A", "a", "B")):
        test = tuple(Example(str(i), "", labels[k]) for i, k in enumerate(draw.integers(3, size=40)))
        answers = draw.integers(3, size=40)
        task = Task("animals", "TC", "", labels, (), test)
        expected = percent(graded(task, [labels[k] for k in answers]), "exact_match")
        assert right_probability(task, np.eye(3)[answers].tolist()) == pytest.approx(expected)


def test_the_released_numbers_are_of_the_closest_accepted_answer() -> None:
    def results(others: tuple[str, ...], label: str = "Jane Austen") -> dict[str, Any]:
        made = Prediction("QA", "books", "0", "Who?", label, "", "austen", others=others)
        return predict_results([made], decode="generate", runtime_seconds=1, steps=1)

    assert results(("Austen",))["predict_exact_match"] == 100.0
    assert results(())["predict_exact_match"] == 0.0
    assert results(("Austen",)) == results((), label="Austen")


def task(scorer: Any) -> Task:
    return Task("books", "QA", "", None, (), (EXAMPLE,), metric="mine.py:score", scorer=scorer)


@pytest.mark.parametrize(
    ("value", "score"),
    [(True, 1.0), (0, 0.0), (0.25, 0.25), (np.float32(0.5), 0.5), (np.bool_(True), 1.0), (1 + 1e-15, 1.0)],
)
def test_a_function_of_ones_own_gets_the_prediction_and_all_answers(value: Any, score: float) -> None:
    got = []

    def scorer(prediction: str, answers: tuple[str, ...]) -> Any:
        got.append((prediction, answers))
        return value

    (answer,) = graded(task(scorer), ["Austen?"])
    assert got == [("Austen?", ("Jane Austen", "Austen", "the author of Emma"))]
    assert percent([answer], "mine.py:score") == 100 * score


def fails(prediction: str, answers: tuple[str, ...]) -> float:
    raise KeyError("two\nlines")


@pytest.mark.parametrize(
    ("scorer", "said"),
    [
        (fails, "raised KeyError: 'two\\nlines' on example 7, prediction 'x'"),
        (lambda p, a: 7, "returned 7 for example 7; it must return a number from 0 to 1"),
        (lambda p, a: 1.001, "returned 1.001 for example 7; it must"),
        (lambda p, a: -0.1, "returned -0.1 for example 7; it must"),
        (lambda p, a: "right", "returned 'right' for example 7; it must"),
        (lambda p, a: None, "returned None for example 7; it must"),
        (lambda p, a: float("nan"), "returned nan for example 7; it must"),
        (lambda p: 1, "raised TypeError: "),
        (lambda p, a: np.zeros(2), "raised ValueError: "),
        (lambda p, a: ["a\nb"] * 99, r"returned ['a\nb', 'a\nb'"),
    ],
)
def test_what_a_function_does_wrong_is_one_line(scorer: Any, said: str) -> None:
    with pytest.raises(InputErrors) as told:
        own_score(task(scorer), EXAMPLE, "x")
    assert str(told.value).startswith(f"task books: mine.py:score {said}")
    assert "\n" not in str(told.value)
    assert len(str(told.value)) < 200


def test_a_score_that_the_file_lacks_is_an_error_of_one_line() -> None:
    with pytest.raises(RunError, match=r"the score of an answer by mine\.py:score is not in"):
        Answer("", "a", "a").score("mine.py:score")


def test_which_metric_a_task_has() -> None:
    config = Config(tasks=[{"name": "t"}])
    released = Config(tasks=[{"name": "t"}], protocol="released")

    def metric(
        labels: tuple[str, ...] | None, set_to: str | None, config: Config, default: str | None = None
    ) -> str:
        return metric_of(Task("t", "t", "", labels, (), (), metric=set_to), config, default)

    assert metric(("a", "b"), None, config) == "exact_match"
    assert metric(None, None, config) == "rougeL"
    assert metric(None, None, released) == "exact_match"
    assert metric(None, "rougeL", released) == "rougeL"
    assert metric(("a", "b"), "macro_f1", config, "exact_match") == "macro_f1"
    assert (
        metric(None, None, config, "exact_match") == "exact_match"
    )  # of a run that an older version started
    assert metric(("a", "b"), "accuracy", config) == "exact_match"  # the same score under its usual name


def test_metrics_in_words() -> None:
    words = scoring_words({"a": "macro_f1", "b": "mine.py:score"}, {"a": "labels", "b": "generate"})
    assert words == "macro-F1 of the likeliest label for a; mine.py:score of the generated answer for b"
    assert (both_or_all(2), both_or_all(3)) == ("both", "all")


@pytest.mark.parametrize("metric", ["edit_similarity", "rougeL", "exact_match", "trace:identical"])
def test_white_space_around_a_reference_costs_nothing(metric: Any) -> None:
    """Code has it, and an answer never does."""
    scorer = identical if metric.startswith("trace") else None
    test = (Example("0", "return", "    return x\n", ("\treturn y\n",)),)
    task = Task("code", "FT", "Complete", None, train=(), test=test, metric=metric, scorer=scorer)
    for text, score in (("return x", 1.0), ("return y", 1.0)):
        (answer,) = graded(task, [text])
        assert answer.score(metric) == score
