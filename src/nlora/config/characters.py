r"""Texts that look alike but differ, and characters that are only half there.

>>> look_alike("caf\u00e9", "cafe\u0301")      # one letter, or a letter and an accent
True
>>> told_apart("cafe\u0301", "caf\u00e9")
'it has U+0065 (latin small letter e) U+0301 (...) where the other has U+00E9 (...)'
>>> half_problem("\ud83d")
'holds \\ud83d, which is half of a character; correct the text, or leave the character out'
"""

from __future__ import annotations

import unicodedata

_VARIANTS = "\ufe0e\ufe0f"  # select a character's form as text or as emoji


def looks(text: str) -> str:
    """The visible part of a text: accents joined to their letters, no invisible characters, plain spaces."""
    if text.isascii():
        return " ".join(text.split())
    composed = unicodedata.normalize("NFC", text)
    seen = "".join(c for c in composed if unicodedata.category(c) != "Cf" and c not in _VARIANTS)
    return " ".join(seen.split())


def look_alike(a: str, b: str) -> bool:
    """Whether two texts look the same, though they may differ."""
    return looks(a) == looks(b)


def told_apart(text: str, label: str) -> str:
    """The difference between a text and a label that looks like it, in code points."""
    start = _alike_from_start(text, label)
    end = _alike_from_start(text[start:][::-1], label[start:][::-1])
    own, other = (_points(t[start : len(t) - end]) for t in (text, label))
    return f"it has {own} where the other has {other}"


def half_problem(text: str) -> str | None:
    """What to say about a text with a lone surrogate in it; None if there is none.

    A lone surrogate is half of a UTF-16 pair, left over when an emoji is cut in two. It cannot be encoded as UTF-8, and
    no tokenizer reads it.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        code = f"\\u{ord(text[error.start]):04x}"
        return f"holds {code}, which is half of a character; correct the text, or leave the character out"
    return None


def _alike_from_start(a: str, b: str) -> int:
    """The length of the common beginning of two texts."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _points(text: str) -> str:
    names = (f"U+{ord(c):04X} ({unicodedata.name(c, 'no name').lower()})" for c in text)
    return " ".join(names) or "nothing"
