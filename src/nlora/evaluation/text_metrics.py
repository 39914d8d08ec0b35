"""Scores of predicted texts, to the printed digit as the released code computes them.

    released_scores(["World", "good"], ["world", "bad"], types=["TC", "SC"], datasets=["agnews", "amazon"])
    # {"exact_match": 50.0, "rouge1": 50.0, "rougeL": 50.0, "exact_match_for_TC": 100.0, ...}

All scores are percentages, pooled over examples (not averaged over tasks) and rounded to four digits. Source:
`compute_metrics.py` of the released N-LoRA (arXiv 2410.10179), with its default tokenizer, not the
cross-lingual one. It differs in that empty lists and lists of different lengths are errors that say so.
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
# Scripts written without spaces: Chinese and Japanese, Thai and Lao, Burmese, Khmer.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff]"
)
_PUNCTUATION = str.maketrans("", "", string.punctuation)


class Rouge(NamedTuple):
    """F-measures of one pair, as shares: 0 to 1."""

    rouge1: float
    rougeL: float  # noqa: N815 - the released key


def normalize(text: str) -> str:
    """Lower-case, without ASCII punctuation, runs of white space as one space, none at the ends.

    Punctuation goes before spaces collapse: "a-b" becomes "ab" and "a - b" becomes "a b". Other scripts'
    punctuation and Unicode forms are left as they are.
    """
    return " ".join(text.lower().translate(_PUNCTUATION).split())


def exact_match(prediction: str, reference: str) -> bool:
    """Whether both texts are the same once normalized. Two empty texts match."""
    return normalize(prediction) == normalize(reference)


def told_apart(labels: Sequence[str]) -> bool:
    """Whether no two of these are the same once normalized, as "-1" and "1", or "+" and "-", are."""
    return len({normalize(label) for label in labels}) == len(set(labels))


def as_they_are(prediction: str, reference: str) -> tuple[str, str]:
    """Stands for a pair that is to be compared without normalization: two same words, or two without a common one."""
    return ("right" if prediction == reference else "wrong"), "right"


@lru_cache(maxsize=1)
def _scorer() -> Any:
    # Imported here: rouge-score loads nltk, which commands that score nothing should not pay for.
    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.tokenizers import DefaultTokenizer

    # Its default, named: left out, rouge-score logs that it chose it, which sets up logging to stderr for good.
    return RougeScorer(["rouge1", "rougeL"], tokenizer=DefaultTokenizer(use_stemmer=True))


@lru_cache(maxsize=65_536)
def rouge(prediction: str, reference: str) -> Rouge:
    """ROUGE-1 and ROUGE-L F-measures of the texts as they are (rouge-score tokenizes), with Porter stemming.

    Texts without any ASCII letter or digit have no tokens and score 0, even against themselves.
    Classification repeats few distinct pairs, so they are remembered.
    """
    scores = _scorer().score(target=reference, prediction=prediction)
    return Rouge(float(scores["rouge1"].fmeasure), float(scores["rougeL"].fmeasure))


def aggregate(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """`exact_match`, `rouge1` and `rougeL` over all pairs, in percent.

    Raises ValueError when there is nothing to score or the lengths differ.
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
    """Mean ROUGE-L F-measure in percent, not rounded: what an entry of R is for a task without a label set.

    Of ASCII texts it is the released `rougeL`. That knows no other letters (of German it drops the umlauts, of Chinese
    everything, so that a text scores 0 against itself), so texts with any are split into words of every script, and
    into characters where words are not spaced. Raises ValueError as `aggregate` does.
    """
    _same_lengths(predictions=predictions, references=references)
    pairs = zip(predictions, references, strict=True)
    return 100.0 * math.fsum(_rouge_l(*pair) for pair in pairs) / len(predictions)


@lru_cache(maxsize=65_536)
def _rouge_l(prediction: str, reference: str) -> float:
    if prediction.isascii() and reference.isascii() and any(map(str.isalnum, reference)):
        return rouge(prediction, reference).rougeL
    scores = _scorer_of_all_scripts().score(target=reference, prediction=prediction)
    return float(scores["rougeL"].fmeasure)


@lru_cache(maxsize=1)
def _scorer_of_all_scripts() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], tokenizer=_AllScripts())


class _AllScripts:
    """rouge-score's own tokens of a word in ASCII, other words as they are; a text without any is split at spaces."""

    def __init__(self) -> None:
        from rouge_score.tokenizers import DefaultTokenizer

        self._ascii = DefaultTokenizer(use_stemmer=True)

    def tokenize(self, text: str) -> list[str]:
        characters = unicodedata.normalize("NFKC", text).lower()
        words = "".join(map(_spaced, characters)).split()
        tokens = [t for word in words for t in (self._ascii.tokenize(word) if word.isascii() else [word])]
        return tokens or text.split()


def _spaced(character: str) -> str:
    """Letters, marks and digits as they are, each alone in scripts without spaces; a space for all others."""
    if _UNSPACED.match(character):
        return f" {character} "
    return character if unicodedata.category(character)[0] in "LMN" else " "


def grouped(predictions: Sequence[str], references: Sequence[str], groups: Sequence[str]) -> dict[str, float]:
    """`aggregate` of each group's pairs, under `<score>_for_<group>`, in the order of appearance.

    groups: one name per pair. Raises ValueError as `aggregate` does.
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
    """Every score that the released code reports: over all pairs, for each type of task, for each data set.

    types, datasets: one name per pair. Where a type is called like a data set (COPA, QQP, BoolQA, MultiRC,
    WiC) both have the same key, and the data set's score stays, as released.
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
