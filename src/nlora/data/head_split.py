"""The ids of what all prompts of a task begin with, tokenized once, where that gives the very ids of whole prompts.

    begin, rest = split_head(tokenizer, head, ids)
    ids(head + text) == begin + ids(rest + text)      # for every text

A tokenizer may merge across any border, so most places to cut at would be wrong. Here the head is cut before the space
between two words of its own, and only if each step of the tokenizer is known to decide what it does there by
characters that the head itself holds:

- normalizers that look at single characters, at characters and their accents, or at runs of spaces;
- pre-tokenizers that look at classes of characters and at one character ahead (`_PATTERNS`);
- then either the pre-tokenizer separates the two words, and the model sees one at a time, or the model is a BPE
  without any piece that reaches from the one word to the other: then no merge can.

What such a cut changes is the beginning of what follows it, to which some tokenizers add a space. This does not depend
on the text, so it shows in the head. Whatever is not known to be like that is tokenized whole.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from nlora.data.backend import backend_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# A space between a printable ASCII character and a letter or digit, but for the few that join what is before them.
_BORDER = re.compile(r"(?<=[!-~]) (?=[^\W_\u0e33\u0eb3\uff9e\uff9f])")

_NORMALIZERS = frozenset({
    "NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "BertNormalizer", "Precompiled", "Prepend", "Strip",
})  # fmt: skip
_PRE_TOKENIZERS = frozenset({
    "ByteLevel", "BertPreTokenizer", "Digits", "Metaspace", "Punctuation", "Whitespace", "WhitespaceSplit",
})  # fmt: skip

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_PATTERNS = (
    # GPT-2 and what was made after it: a contraction, or a run of one class with one character before it.
    "'s", "'t", "'re", "'ve", "'m", "'ll", "'d", _CONTRACTIONS, r"'(?i:[sdmt]|ll|ve|re)",
    r" ?\p{L}+", r" ?\p{N}+", r" ?[^\s\p{L}\p{N}]+", r"\s+(?!\S)", r"\s+",
    # GPT-4, Llama 3, Qwen 2
    r"[^\r\n\p{L}\p{N}]?\p{L}+", r"[^\r\n\p{L}\p{N}]?+\p{L}+", r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+",
    r"\p{N}", r"\p{N}+", r"\p{N}{1,3}", r" ?[^\s\p{L}\p{N}]+[\r\n]*", r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*",
    r" ?[^\s\p{L}\p{N}]++[\r\n]*", r"\s*[\r\n]+", r"\s*[\r\n]",
    # GPT-4o, Mistral's Tekken: words whose case changes once
    *(
        rf"[^\r\n\p{{L}}\p{{N}}]?{before}{how}{ending}"
        for before, how in ((f"{_UPPER}*", f"{_LOWER}+"), (f"{_UPPER}+", f"{_LOWER}*"))
        for ending in ("", f"{_CONTRACTIONS}?")
    ),
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
)  # fmt: skip
_ALTERNATIVE = "|".join(map(re.escape, _PATTERNS))
_KNOWN_REGEX = re.compile(rf"(?:{_ALTERNATIVE})(?:\|(?:{_ALTERNATIVE}))*")

_SPACES = (" ", "▁", "Ġ")
"""A space as the pieces of tokenizers write it."""
_TRIED = ("", " ", "x", " x", "\n\nx", "  'll", "\t1234", "́x", "Σ,▁😀", "\r\n\xa0 '", "▁ x", "好x")
"""Texts to try a cut on, since a newer tokenizer could hold a surprise."""


def split_head(
    tokenizer: PreTrainedTokenizerBase, head: str, ids: Callable[[str], list[int]]
) -> tuple[list[int], str]:
    """The ids of the head's first part, and the rest of it; ([], head) where no cut is known to be exact.

    ids: the ids of one text, without special tokens.
    """
    backend = backend_of(tokenizer)
    borders = list(_BORDER.finditer(head))
    if backend is None or not borders:
        return [], head
    at = borders[-1].start()
    added = tokenizer.added_tokens_decoder.values()
    if _is_local(backend) and not any(_reaches_over(token, head[at - 1], head[at + 1]) for token in added):
        first = ids(head[:at])
        for rest in (head[at:], head[at + 1 :]):
            if _is_border(backend, head, head[:at], rest) and all(
                ids(head + text) == first + ids(rest + text) for text in _TRIED
            ):
                return first, rest
    return [], head


def _is_local(backend: Any) -> bool:
    """Whether each step before the model decides by what is near."""
    try:
        normalizer, pre_tokenizer = _state(backend.normalizer), _state(backend.pre_tokenizer)
    except Exception:  # it has parts in Python, which cannot say what they are (no narrower class is raised)
        return False
    return _is_local_normalizer(normalizer) and _is_local_pre_tokenizer(pre_tokenizer)


def _state(component: Any) -> dict[str, Any]:
    state: dict[str, Any] = json.loads(component.__getstate__()) if component is not None else {"type": None}
    return state


def _is_local_normalizer(state: dict[str, Any]) -> bool:
    if state["type"] == "Sequence":
        return all(map(_is_local_normalizer, state["normalizers"]))
    if state["type"] == "Replace":
        what = state["pattern"]
        # Runs of spaces: that at the cut is a single one.
        return what == {"Regex": " {2,}"} or (text := what.get("String", "  ")) == " " or " " not in text
    return state["type"] is None or state["type"] in _NORMALIZERS


def _is_local_pre_tokenizer(state: dict[str, Any]) -> bool:
    if state["type"] == "Sequence":
        return all(map(_is_local_pre_tokenizer, state["pretokenizers"]))
    if state["type"] == "Split":
        what = state["pattern"]
        known = _KNOWN_REGEX.fullmatch(what.get("Regex", "")) or len(what.get("String", "")) == 1
        return bool(known) and not state.get("invert")
    return state["type"] is None or state["type"] in _PRE_TOKENIZERS


def _reaches_over(token: Any, left: str, right: str) -> bool:
    """Whether an added token, found in the text before anything else, could take hold of the space or what is next."""
    text, left, right = (part.casefold() for part in (token.content, left, right))
    if not token.special and (token.lstrip or token.rstrip or text.startswith(right)):
        return True  # special ones are not looked for in a text, but may hide others
    return any(text == space or left + space in text or space + right in text for space in _SPACES)


def _is_border(backend: Any, head: str, before: str, after: str) -> bool:
    """Whether the model sees the same in the head as in its two parts, and nothing that reaches over the cut."""
    whole, one, other = (_pieces(backend, text) for text in (head, before, after))
    text, cut = "".join(whole), len("".join(one))
    ends, ends_apart = _ends(whole), _ends([*one, *other])
    if text != "".join([*one, *other]) or ends | {cut} != ends_apart:
        return False
    return cut in ends or _never_joins(backend, text[cut - 1 : cut + 1])


def _pieces(backend: Any, text: str) -> list[str]:
    """What the model sees, one at a time."""
    normal = backend.normalizer.normalize_str(text) if backend.normalizer else text
    split = backend.pre_tokenizer
    return [piece for piece, _ in split.pre_tokenize_str(normal)] if split else [normal]


def _ends(pieces: list[str]) -> set[int]:
    ends, end = set(), 0
    for piece in pieces:
        end += len(piece)
        ends.add(end)
    return ends


def _never_joins(backend: Any, pair: str) -> bool:
    """Whether the model is a BPE without a piece in which these two characters stand side by side."""
    from tokenizers.models import BPE

    model = backend.model
    if not isinstance(model, BPE) or model.dropout or model.ignore_merges:
        return False
    if model.continuing_subword_prefix or model.end_of_word_suffix or pair[1] not in _SPACES:
        return False
    pieces = backend.get_vocab()
    # Both are pieces, so neither is unknown: unknown neighbors may be made one.
    return pair[0] in pieces and pair[1] in pieces and not any(pair in piece for piece in pieces)
