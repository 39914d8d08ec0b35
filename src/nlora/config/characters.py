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


UTF_16 = "is UTF-16; save it as UTF-8"


def is_utf16(raw: bytes) -> bool:
    """Whether the beginning of a file is UTF-16: by its mark, or by a NUL in every other byte of its first line."""
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        return True
    line = raw.partition(b"\n")[0]
    return len(line) > 1 and not (any(line[::2]) and any(line[1::2]))


def utf8(raw: bytes) -> str:
    """The text of a file, without a mark at its beginning. Raises ValueError, with what to do, if it is not UTF-8."""
    if is_utf16(raw):
        raise ValueError(UTF_16)
    try:
        return raw.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 text (byte {error.start + 1}); save it as UTF-8") from error


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
