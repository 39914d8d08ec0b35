"""Scores of edited texts: how similar two texts are letter by letter, and how well a text was simplified.

>>> round(edit_similarity("return x", "return y"), 3)
0.875
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

_LONGEST = 4
"""Words of the longest n-gram of SARI."""
_ENTITIES = (("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">"))
_SPLITS = (
    (re.compile(r"([{-~[-` -&(-+:-@/])"), r" \1 "),  # ASCII punctuation but . , - '
    (re.compile(r"([^0-9])([.,])"), r"\1 \2 "),
    (re.compile(r"([.,])([^0-9])"), r" \1 \2"),
    (re.compile(r"([0-9])(-)"), r"\1 \2 "),
)


def edit_similarity(one: str, other: str) -> float:
    """2·L / (length of one + length of other), L the length of their longest common subsequence of characters.

    From 0 to 1; 0 if either text is empty. It is `fuzz.ratio` of fuzzywuzzy with python-Levenshtein and of rapidfuzz,
    as a share and without rounding to whole percent.
    """
    if not one or not other:
        return 0.0
    return 2 * _common(one, other) / (len(one) + len(other))


def _common(one: str, other: str) -> int:
    """The length of the longest common subsequence, a row of the table as the bits of a number (Hyyrö 2004)."""
    places: dict[str, int] = {}
    for place, character in enumerate(one):
        places[character] = places.get(character, 0) | 1 << place
    every = (1 << len(one)) - 1
    row = every
    for character in other:
        matched = row & places.get(character, 0)
        row = (row + matched | row - matched) & every
    return len(one) - row.bit_count()


def sari(source: str, prediction: str, references: Sequence[str]) -> float:
    """SARI of one text, 0 to 1: Xu et al., TACL 2016 (doi 10.1162/tacl_a_00107), equations 1 to 5.

    What the prediction keeps, deletes and adds of the source is compared with what the references do. Words are
    lower-case tokens of mteval-v13a. For n-grams of 1 to 4 words: F1 of what is kept, precision of what is deleted, F1
    of what is added; the mean over n, then over the three. As in the metric `sari` of Hugging Face's evaluate, a share
    of nothing is 1, and recall of what is kept counts n-grams rather than kinds of them.

    source: the text that was to be simplified. references: one or more.

    >>> sari("It is a very big cat", "It is a big cat", ["It is a big cat"])
    1.0
    """
    texts = [_words(text) for text in (source, prediction, *references)]
    parts = [_parts([_grams(words, n) for words in texts]) for n in range(1, _LONGEST + 1)]
    return sum(sum(part) for part in parts) / (3 * _LONGEST)


def _parts(grams: Sequence[Counter[str]]) -> tuple[float, float, float]:
    """The scores of what is kept, deleted and added. grams: of source, prediction and each reference."""
    source, predicted, *each = grams
    references = sum(each, Counter[str]())
    # So that they compare with the sum over the references.
    whole = Counter({gram: count * len(each) for gram, count in source.items()})
    made = Counter({gram: count * len(each) for gram, count in predicted.items()})
    kept, to_keep = whole & made, whole & references
    well_kept = kept & references
    keep = _f1(
        _mean(well_kept[gram] / count for gram, count in kept.items()),
        well_kept.total() / to_keep.total() if to_keep else 1.0,
    )
    deleted = whole - made
    well_deleted = deleted - references
    delete = _mean(well_deleted[gram] / count for gram, count in deleted.items())
    added, to_add = made.keys() - whole.keys(), references.keys() - whole.keys()
    right = len(added & to_add)
    add = _f1(right / len(added) if added else 1.0, right / len(to_add) if to_add else 1.0)
    return keep, delete, add


def _mean(values: Iterable[float]) -> float:
    known = list(values)
    return sum(known) / len(known) if known else 1.0


def _f1(precision: float, recall: float) -> float:
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _grams(words: Sequence[str], n: int) -> Counter[str]:
    return Counter(" ".join(words[i : i + n]) for i in range(len(words) - n + 1))


def _words(text: str) -> list[str]:
    """The tokens of mteval-v13a, the tokenizer of WMT's evaluations, in lower case."""
    line = text.lower().replace("<skipped>", "").replace("-\n", "").replace("\n", " ")
    for entity, character in _ENTITIES:
        line = line.replace(entity, character)
    line = f" {line} "
    for pattern, replacement in _SPLITS:
        line = pattern.sub(replacement, line)
    return line.split()
