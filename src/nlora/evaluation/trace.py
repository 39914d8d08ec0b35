"""The scores of TRACE (arXiv 2310.06762) for its tasks with accuracy, and for Py150, as metrics of a task.

    metric: nlora.evaluation.trace:science_qa

They follow `metrics.py` and `evaluations/` of github.com/BeyonderXX/TRACE: an empty text scores 0. Its other two
scores are nlora's own metrics `rougeL` (there of another package, without stemming) and `sari`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from nlora.evaluation.edit_metrics import edit_similarity

_LITERAL = re.compile(r"<(?:STR|NUM|CHAR)_LIT:(.*?)>", re.DOTALL)
_UNNAMED = (("<NUM_LIT>", "0"), ("<STR_LIT>", ""), ("<CHAR_LIT>", ""))
_ANSWER = "Answer: "


def identical(prediction: str, answers: Sequence[str]) -> float:
    """1 if it is an accepted answer to the letter: signs and points of a number count, unlike in exact_match.

    >>> identical("-5", ["-5"]), identical("-5", ["5"])
    (1.0, 0.0)
    """
    return float(bool(prediction) and prediction in answers)


def science_qa(prediction: str, answers: Sequence[str]) -> float:
    """ScienceQA: 1 if the letter with which an answer begins is right, whatever the reasons after it.

    In an older form of the data, and of TRACE's score, the letter stands after "Answer: ".

    >>> science_qa("B\\nBecause it is.", ["B\\nBecause water boils."])
    1.0
    """
    return max(float(_letter(prediction, answer) == answer.removeprefix(_ANSWER)[:1]) for answer in answers)


def py150(prediction: str, answers: Sequence[str]) -> float:
    """Py150: the edit similarity of two lines of code, with literals instead of their marks.

    >>> py150("x = <NUM_LIT:3>", ["x = 3"])
    1.0
    """
    return max(edit_similarity(_code(prediction), _code(answer)) for answer in answers)


def _letter(prediction: str, answer: str) -> str:
    """The letter of a prediction, where the answer has its own; empty if there is none."""
    if answer.startswith(_ANSWER):
        _, _, prediction = prediction.partition(_ANSWER)
    return prediction[:1]


def _code(text: str) -> str:
    for mark, literal in _UNNAMED:
        text = text.replace(mark, literal)
    return _LITERAL.sub(r"\1", text)
