r"""Texts that look alike and differ: what tells them apart, and characters that are only half there.

look_alike("caf\u00e9", "cafe\u0301")      # True: one letter, or a letter and an accent
told_apart("cafe\u0301", "caf\u00e9")      # 'it has U+0065 (latin small letter e) U+0301 (...) where ...'
half_problem("\ud83d")                     # "holds \ud83d, which is half of a character; mend ..."
"""

from __future__ import annotations

import unicodedata

_VARIANTS = "\ufe0e\ufe0f"  # ask for a character as text or as a picture


def looks(text: str) -> str:
    """What is to be seen of a text: accents joined to their letters, invisible characters left out, plain spaces."""
    if text.isascii():
        return " ".join(text.split())
    composed = unicodedata.normalize("NFC", text)
    seen = "".join(c for c in composed if unicodedata.category(c) != "Cf" and c not in _VARIANTS)
    return " ".join(seen.split())


def look_alike(a: str, b: str) -> bool:
    """Whether two texts look the same and yet may differ."""
    return looks(a) == looks(b)


def told_apart(text: str, label: str) -> str:
    """Where a text differs from a label that looks like it, in code points."""
    start = _alike_from_start(text, label)
    end = _alike_from_start(text[start:][::-1], label[start:][::-1])
    own, other = (_points(t[start : len(t) - end]) for t in (text, label))
    return f"it has {own} where the other has {other}"


def half_problem(text: str) -> str | None:
    """What to say of a text with a lone surrogate in it; None: there is none.

    Half of a pair of UTF-16: what is left of an emoji that was cut in two. It cannot be written as UTF-8, and no
    tokenizer reads it.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        code = f"\\u{ord(text[error.start]):04x}"
        return f"holds {code}, which is half of a character; mend the text, or leave the character out"
    return None


def _alike_from_start(a: str, b: str) -> int:
    """How many characters two texts begin with alike."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _points(text: str) -> str:
    names = (f"U+{ord(c):04X} ({unicodedata.name(c, 'no name').lower()})" for c in text)
    return " ".join(names) or "nothing"
