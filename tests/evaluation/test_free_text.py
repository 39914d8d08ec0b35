"""The score of free text: the released ROUGE-L for ASCII, and words of every script otherwise."""

import pytest

from nlora.evaluation.text_metrics import aggregate, free_text_score


def test_ascii_texts_get_the_released_score() -> None:
    predictions = ["the cats sat on the mat", "running", "", "no", "it's a_b 12"]
    references = ["The cat sat there.", "he runs", "something", "yes", "its a b 12"]
    expected = aggregate(predictions, references)["rougeL"]
    assert 0 < expected < 100
    assert free_text_score(predictions, references) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("prediction", "reference", "score"),
    [
        ("我喜欢猫", "我喜欢狗", 75.0),  # three of four characters
        ("müde Bären", "müde Hunde", 50.0),  # the released tokens of Bären are b and ren
        ("müde", "mude", 0.0),
        ("кошка сидит", "Кошка, сидит!", 100.0),
        ("cafe\u0301", "café", 100.0),  # two ways of writing one letter
        ("हिन्दी", "हिनदा", 0.0),  # marks are part of a word
        ("🙂", "🙂", 100.0),
        ("!!", "!!", 100.0),
        ("!!", "yes", 0.0),
        ("the cats 猫", "the cat 猫", 100.0),  # stemmed, as the released score does
    ],
)
def test_other_scripts_count(prediction: str, reference: str, score: float) -> None:
    assert free_text_score([prediction], [reference]) == pytest.approx(score)


def test_nothing_to_score_is_an_error() -> None:
    with pytest.raises(ValueError, match="no predictions to score"):
        free_text_score([], [])
