"""Scores of predicted texts, identical to those of the released code in every printed digit.

>>> aggregate(["World", "good"], ["world", "bad"])
{'exact_match': 50.0, 'rouge1': 50.0, 'rougeL': 50.0}

Scores are percentages, pooled over examples (not averaged over tasks) and rounded to four digits. Source:
`compute_metrics.py` of the released N-LoRA (arXiv 2410.10179), with its default tokenizer, not the cross-lingual one.
The only difference is that empty lists and lists of different lengths raise an error.
"""

from __future__ import annotations

import math
import re
import string
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

DIGITS = 4
# Scripts without spaces between words: Chinese and Japanese, Thai and Lao, Burmese, Khmer.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff]"
)
_PUNCTUATION = str.maketrans("", "", string.punctuation)


class Rouge(NamedTuple):
    """F-measures of one pair, from 0 to 1."""

    rouge1: float
    rougeL: float  # noqa: N815 - the released key


def normalize(text: str) -> str:
    """Lower case, without ASCII punctuation, with single spaces between words.

    Punctuation is removed first: "a-b" becomes "ab", and "a - b" becomes "a b". Other punctuation and Unicode forms
    are not changed.
    """
    return " ".join(text.lower().translate(_PUNCTUATION).split())


def exact_match(prediction: str, reference: str) -> bool:
    """Whether both texts are the same after normalization. Two empty texts match."""
    return normalize(prediction) == normalize(reference)


def told_apart(labels: Sequence[str]) -> bool:
    """Whether all labels differ after normalization, unlike "-1" and "1", and none becomes empty, as "?" does."""
    found = {normalize(label) for label in labels}
    return len(found) == len(set(labels)) and "" not in found


@lru_cache(maxsize=1)
def _scorer() -> Any:
    # Imported here, because rouge-score loads nltk, which takes time that only scoring should cost.
    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.tokenizers import DefaultTokenizer

    # The default tokenizer, but explicit: otherwise rouge-score logs its choice, which permanently sets up logging.
    return RougeScorer(["rouge1", "rougeL"], tokenizer=DefaultTokenizer(use_stemmer=True))


@lru_cache(maxsize=65_536)
def rouge(prediction: str, reference: str) -> Rouge:
    """ROUGE-1 and ROUGE-L F-measures of the texts as tokenized by rouge-score, with Porter stemming.

    Texts without any ASCII letter or digit have no tokens and score 0, even against themselves. Memoized, because
    classification has few distinct pairs.
    """
    scores = _scorer().score(target=reference, prediction=prediction)
    return Rouge(float(scores["rouge1"].fmeasure), float(scores["rougeL"].fmeasure))


def aggregate(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """`exact_match`, `rouge1` and `rougeL` over all pairs, in percent.

    Raises ValueError if there is nothing to score or the lengths differ.
    """
    _same_lengths(predictions=predictions, references=references)
    pairs = list(zip(predictions, references, strict=True))
    rouges = [rouge(prediction, reference) for prediction, reference in pairs]
    return {
        "exact_match": _percent(
            sum(exact_match(prediction, reference) for prediction, reference in pairs), len(pairs)
        ),
        "rouge1": _percent(sum(score.rouge1 for score in rouges), len(pairs)),
        "rougeL": _percent(sum(score.rougeL for score in rouges), len(pairs)),
    }


def free_text_score(predictions: Sequence[str], references: Sequence[str]) -> float:
    """Mean ROUGE-L F-measure in percent, not rounded: the score in R of a task without a label set.

    For ASCII texts it is the released `rougeL`. That ignores other letters (it drops German umlauts, and all of
    Chinese, so that a text scores 0 against itself). Therefore texts with other letters are split into the words of
    any script, or into characters in scripts without spaces. Raises ValueError like `aggregate`.
    """
    _same_lengths(predictions=predictions, references=references)
    pairs = zip(predictions, references, strict=True)
    return 100.0 * math.fsum(rouge_l(*pair) for pair in pairs) / len(predictions)


@lru_cache(maxsize=65_536)
def rouge_l(prediction: str, reference: str) -> float:
    """ROUGE-L F-measure of a pair, from 0 to 1, as in `free_text_score`."""
    if prediction.isascii() and reference.isascii() and any(map(str.isalnum, reference)):
        return rouge(prediction, reference).rougeL
    scores = _scorer_of_all_scripts().score(target=reference, prediction=prediction)
    return float(scores["rougeL"].fmeasure)


@lru_cache(maxsize=1)
def _scorer_of_all_scripts() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], tokenizer=_AllScripts())


class _AllScripts:
    """rouge-score's tokens for ASCII words, other words unchanged; a text without words is split at spaces."""

    def __init__(self) -> None:
        from rouge_score.tokenizers import DefaultTokenizer

        self._ascii = DefaultTokenizer(use_stemmer=True)

    def tokenize(self, text: str) -> list[str]:
        characters = unicodedata.normalize("NFKC", text).lower()
        words = "".join(map(_spaced, characters)).split()
        tokens = [t for word in words for t in (self._ascii.tokenize(word) if word.isascii() else [word])]
        return tokens or text.split()


def _spaced(character: str) -> str:
    """Letters, marks and digits, with spaces around them in scripts without spaces; other characters become a space."""
    if _UNSPACED.match(character):
        return f" {character} "
    return character if unicodedata.category(character)[0] in "LMN" else " "


def grouped(predictions: Sequence[str], references: Sequence[str], groups: Sequence[str]) -> dict[str, float]:
    """`aggregate` of each group's pairs, as `<score>_for_<group>`, in the order of first appearance.

    groups: one name per pair. Raises ValueError like `aggregate`.
    """
    _same_lengths(predictions=predictions, references=references, groups=groups)
    members: dict[str, tuple[list[str], list[str]]] = {}
    for prediction, reference, group in zip(predictions, references, groups, strict=True):
        of_group = members.setdefault(group, ([], []))
        of_group[0].append(prediction)
        of_group[1].append(reference)
    return {
        f"{score}_for_{group}": value
        for group, of_group in members.items()
        for score, value in aggregate(*of_group).items()
    }


def released_scores(
    predictions: Sequence[str], references: Sequence[str], types: Sequence[str], datasets: Sequence[str]
) -> dict[str, float]:
    """All scores that the released code reports: over all pairs, for each type of task, and for each data set.

    types, datasets: one name per pair. If a type and a data set have the same name (COPA, QQP, BoolQA, MultiRC, WiC),
    the key has the data set's score, as in the release.
    """
    return {
        **aggregate(predictions, references),
        **grouped(predictions, references, types),
        **grouped(predictions, references, datasets),
    }


def _percent(total: float, count: int) -> float:
    return round(100.0 * total / count, DIGITS)


def _same_lengths(**lists: Sequence[str]) -> None:
    lengths = {name: len(values) for name, values in lists.items()}
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{length} {name}" for name, length in lengths.items())
        raise ValueError(f"every prediction needs one reference: {found}")
    if not any(lengths.values()):
        raise ValueError("no predictions to score; a score of nothing is undefined")
