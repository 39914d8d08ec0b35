"""The result files of a stage against those of the released pipeline."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from nlora.data.task import Example, Task
from nlora.evaluation.evaluator import Answers
from nlora.runs.released_files import (
    Prediction,
    exact_match_by_dataset,
    predict_results,
    train_results,
    write_results,
)
from nlora.runs.stage_results import predictions_of, score
from nlora.runs.task_notes import task_notes

OF_PREDICT = {"predict_exact_match_macro", "decode"}
OF_TRAIN = {"train_padding_share"}
OURS = {"all_results": OF_PREDICT | OF_TRAIN, "train_results": OF_TRAIN, "predict_results": OF_PREDICT}
INSTRUCTION = "What is it?\nOption: a, b \n{0}\nAnswer:"


def prediction(dataset: str, label: str, answer: str, kind: str = "TC", number: int = 0) -> Prediction:
    return Prediction(kind, dataset, str(number), "some text\n", label, INSTRUCTION, answer)


def golden(shared: Path, stage: str, name: str) -> dict[str, Any]:
    path = shared / "golden" / "pipeline" / "nlora" / stage / f"{name}.json"
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return values


def released_like(shared: Path) -> list[Prediction]:
    """64 answers on two data sets with the exact matches of the released second stage: 5 and 8 of 32."""
    agnews = [prediction("agnews", "World", "World" if i < 5 else "", "TC", i) for i in range(32)]
    amazon = [prediction("amazon", "negative", "negative" if i < 8 else "", "SC", i) for i in range(32)]
    return agnews + amazon


def test_the_keys_their_order_and_the_digits_of_the_released_files(shared: Path, tmp_path: Path) -> None:
    released = {
        name: golden(shared, "2-amazon", name) for name in ("all_results", "train_results", "predict_results")
    }
    predictions = released_like(shared)
    # Runtimes with one more digit than the released ones, which the released rates were computed from.
    train = train_results(
        epochs=2, loss=0.8680689930915833, runtime_seconds=3.52026, samples=64, steps=16, padding_share=0.12345
    )  # fmt: skip
    assert train["train_padding_share"] == 0.1235  # the floats nearest to 0.12345 round up
    predict = predict_results(
        predictions, decode="generate", runtime_seconds=1.063246, steps=4, epochs=2, global_step=16,
        mean_tokens=2.265625,
    )  # fmt: skip
    write_results(tmp_path, train, predict, predictions)
    for name, expected in released.items():
        text = (tmp_path / f"{name}.json").read_text(encoding="utf-8")
        written = json.loads(text)
        assert list(written) == sorted(written)
        assert text == json.dumps(
            written, indent=4, sort_keys=True
        )  # indented, no last line end, as released
        expected.pop("predict_loss", None)  # always 0 on LLaMA; left out here
        assert set(written) == set(expected) | OURS[name]
        for key, value in expected.items():
            if "rouge" not in key:  # these answers match as often as the released ones, but are others
                assert written[key] == value, key
    assert (tmp_path / "all_results.json").read_text(encoding="utf-8").startswith('{\n    "decode"')


def test_lines_of_predictions_are_the_released_lines(shared: Path, tmp_path: Path) -> None:
    source = shared / "golden" / "pipeline" / "nlora" / "1-agnews" / "predict_eval_predictions.head5.jsonl"
    predictions = []
    for line in source.read_text(encoding="utf-8").splitlines():
        values = json.loads(line)
        instance = values["Instance"]
        predictions.append(
            Prediction(
                type=values["Task"],
                dataset=values["Dataset"],
                id=instance["id"],
                sentence=instance["sentence"],
                label=instance["label"],
                instruction=instance["instruction"],
                prediction=values["Prediction"],
            )
        )
    assert len(predictions) == 5
    train = train_results(epochs=1, loss=1, runtime_seconds=1, samples=1, steps=1, padding_share=0.0)
    predict = predict_results(predictions, decode="labels", runtime_seconds=1, steps=1)
    write_results(tmp_path, train, predict, predictions)
    written = (tmp_path / "predict_eval_predictions.jsonl").read_bytes()
    assert written.rstrip(b"\n") == source.read_bytes().rstrip(b"\n")


def test_the_macro_mean_does_not_weigh_by_size() -> None:
    predictions = [prediction("big", "a", "a", number=i) for i in range(3)] + [prediction("small", "a", "b")]
    results = predict_results(predictions, decode="labels", runtime_seconds=2, steps=1)
    assert results["predict_exact_match"] == 75.0
    assert results["predict_exact_match_macro"] == 50.0
    assert exact_match_by_dataset(predictions) == {"big": 100.0, "small": 0.0}
    assert results["decode"] == "labels"
    assert "predict_loss" not in results


def test_what_cannot_be_a_number_is_null(tmp_path: Path) -> None:
    train = train_results(epochs=1, loss=math.nan, runtime_seconds=0, samples=1, steps=1, padding_share=0.0)
    predictions = [prediction("d", "é", "é")]
    predict = predict_results(predictions, decode="labels", runtime_seconds=1, steps=1)
    write_results(tmp_path, train, predict, predictions)
    written = json.loads((tmp_path / "train_results.json").read_text(encoding="utf-8"))
    assert (written["train_loss"], written["train_samples_per_second"]) == (None, None)


def test_no_predictions_are_no_results() -> None:
    with pytest.raises(ValueError, match="no predictions to score"):
        predict_results([], decode="labels", runtime_seconds=1, steps=1)


def test_labels_that_differ_in_punctuation_only_are_compared_as_they_are(tmp_path: Path) -> None:
    """Every answer is "1", and half of the labels are "-1"."""
    task = Task(
        "signs",
        "SC",
        "",
        ("-1", "1"),
        (),
        tuple(Example(str(i), "x", "-1" if i % 2 else "1") for i in range(8)),
    )
    answers = Answers(("1",) * 8, "labels", 0.1, 1)
    assert score(task, answers, "exact_match") == 50.0
    predictions = predictions_of(task, answers)
    results = predict_results(predictions, decode="labels", runtime_seconds=1.0, steps=1)
    percentages = {key: results[key] for key in results if "exact_match" in key or "rouge" in key}
    assert percentages
    assert set(percentages.values()) == {50.0}
    assert [line["Exact"] for line in (p.line() for p in predictions)] == [True] * 8
    assert task_notes([task])[0] == (
        "signs: labels '-1' and '1' differ only in punctuation, so answers are compared unnormalized"
    )


def test_labels_that_stay_apart_are_compared_as_released() -> None:
    task = Task("yes", "QA", "", ("Yes.", "No."), (), (Example("0", "x", "Yes."), Example("1", "x", "No.")))
    predictions = list(predictions_of(task, Answers(("yes", "YES!"), "generate", 0.1, 1)))
    assert exact_match_by_dataset(predictions) == {"yes": 50.0}
    assert "Exact" not in predictions[0].line()
