"""The router's discriminant analysis against its formulas, what it reads, and its confusion matrix."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nlora.data.task import Example, Task
from nlora.runs.routing import Routing
from nlora.runs.task_router import fitted, text_read

Rows = NDArray[np.float64]


def shrunk_covariance(rows: Rows) -> Rows:
    """Of one task: Ledoit and Wolf's estimate (2004, lemma 3.2 to 3.4) of standardized features, scaled back."""
    scale = rows.std(axis=0)
    X = (rows - rows.mean(axis=0)) / scale
    n, d = X.shape
    S = X.T @ X / n
    m = np.trace(S) / d
    d2 = ((S - m * np.eye(d)) ** 2).sum()
    b2 = min(sum(((np.outer(x, x) - S) ** 2).sum() for x in X) / n**2, d2)
    return scale[:, None] * (b2 / d2 * m * np.eye(d) + (1 - b2 / d2) * S) * scale


def test_it_is_linear_discriminant_analysis_with_a_shrunk_covariance() -> None:
    draw = np.random.default_rng(5)
    mixing = draw.normal(size=(6, 6))
    counts = (12, 30, 9)  # fewer examples make no task less likely
    tasks = [(draw.normal(size=(n, 6)) @ mixing + draw.normal(size=6)).astype(np.float32) for n in counts]
    covariance = sum(shrunk_covariance(rows.astype(np.float64)) for rows in tasks) / len(tasks)
    means = np.stack([rows.astype(np.float64).mean(axis=0) for rows in tasks])
    weights = np.linalg.solve(covariance, means.T)  # (d, tasks)
    x = draw.normal(size=(200, 6)) @ mixing
    expected = x @ weights - (means.T * weights).sum(axis=0) / 2
    found = fitted(tasks)
    np.testing.assert_array_equal(found.predict(x), expected.argmax(axis=1))
    scores = found.decision_function(x)
    np.testing.assert_allclose(scores - scores[:, :1], expected - expected[:, :1], rtol=1e-6, atol=1e-8)
    assert len(set(expected.argmax(axis=1))) == 3


def test_features_that_never_vary_do_no_harm() -> None:
    rows = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    rows[:, 2] = 0
    moved = rows + np.float32([10, 0, 0, 0])
    assert fitted([rows, moved]).predict(np.concatenate([rows, moved])).tolist() == [0] * 8 + [1] * 8


def test_it_never_reads_the_name_of_the_task() -> None:
    task = Task("secret", "hidden", "Which color?", ("red", "blue"), (), ())
    example = Example("0", "the red fox", "red")
    assert text_read("prompt", task, example) == "Which color?\nOption: red, blue \nthe red fox\nAnswer:"
    assert text_read("text", task, example) == "the red fox"
    chat = Example("0", "user: Is it down?", "no", chat=True)
    asked = Task("secret", "hidden", "", None, (chat,), ())
    assert text_read("prompt", asked, chat) == text_read("text", asked, chat) == "user: Is it down?"


def test_guesses_are_counted_by_task() -> None:
    guesses = {"a": ["a", "b", "c", "a"], "c": ["c"], "later": ["a", "a"]}
    found = Routing.of(["a", "b", "c"], guesses)
    assert found is not None
    assert found.counts == ((2, 1, 1), (0, 0, 0), (0, 0, 1))
    assert found.accuracy == 60.0
    assert Routing.of(["a"], guesses) is None  # nothing to guess
    assert Routing.of(["a", "b"], {}) is None  # nothing was guessed
