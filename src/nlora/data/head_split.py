"""Splits the head of a task's prompts, so that its first part is tokenized only once for all prompts.

`begin, rest = split_head(tokenizer, head, ids)` guarantees ids(head + text) == begin + ids(rest + text) for every text.

A tokenizer may merge tokens across most places, and then a split there changes the ids. To be exact, the head is split
before a space between two of its words, and only if every step of the tokenizer is known to depend, at this place, on
characters of the head alone:

- the normalizers look at single characters, at characters with their accents, or at runs of spaces;
- the pre-tokenizers look at classes of characters, and one character ahead (`_PATTERNS`);
- the pre-tokenizer separates the two words; or else the model is a BPE without a token that spans the split.

The tables below are long because only known steps are safe: with any other, the whole prompt is tokenized. Some
tokenizers add a space to the beginning of a text. Whether `rest` needs its own does not depend on the text, so
comparing the ids of the head tells.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from nlora.data.backend import backend_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# A space between a printable ASCII character and a letter or digit, except for the few that combine with what precedes.
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
    # GPT-2 and its successors: a contraction, or a run of one class with one character before it.
    "'s", "'t", "'re", "'ve", "'m", "'ll", "'d", _CONTRACTIONS, r"'(?i:[sdmt]|ll|ve|re)",
    r" ?\p{L}+", r" ?\p{N}+", r" ?[^\s\p{L}\p{N}]+", r"\s+(?!\S)", r"\s+",
    # GPT-4, Llama 3, Qwen 2.
    r"[^\r\n\p{L}\p{N}]?\p{L}+", r"[^\r\n\p{L}\p{N}]?+\p{L}+", r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+",
    r"\p{N}", r"\p{N}+", r"\p{N}{1,3}", r" ?[^\s\p{L}\p{N}]+[\r\n]*", r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*",
    r" ?[^\s\p{L}\p{N}]++[\r\n]*", r"\s*[\r\n]+", r"\s*[\r\n]",
    # GPT-4o, Mistral's Tekken: words whose case changes once.
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
"""A space, as it is written in tokens."""
_PROBES = ("", " ", "x", " x", "\n\nx", "  'll", "\t1234", "́x", "Σ,▁😀", "\r\n\xa0 '", "▁ x", "好x")
"""Texts on which each split is tried, in case a new tokenizer does something unexpected."""


def split_head(
    tokenizer: PreTrainedTokenizerBase, head: str, ids: Callable[[str], list[int]]
) -> tuple[list[int], str]:
    """The ids of the head's first part, and its rest; ([], head) if no split is known to be exact.

    ids: returns the ids of a text, without special tokens.
    """
    backend = backend_of(tokenizer)
    borders = list(_BORDER.finditer(head))
    if backend is None or not borders:
        return [], head
    at = borders[-1].start()
    added = tokenizer.added_tokens_decoder.values()
    if _is_local(backend) and not any(_may_span(token, head[at - 1], head[at + 1]) for token in added):
        first = ids(head[:at])
        for rest in (head[at:], head[at + 1 :]):
            if _is_exact(backend, head, head[:at], rest) and all(
                ids(head + text) == first + ids(rest + text) for text in _PROBES
            ):
                return first, rest
    return [], head


def _is_local(backend: Any) -> bool:
    """Whether no step before the model looks further than the characters around the split."""
    try:
        normalizer, pre_tokenizer = _state(backend.normalizer), _state(backend.pre_tokenizer)
    except Exception:  # parts in Python cannot be serialized (tokenizers raises no narrower class)
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
        # Runs of spaces are safe, because there is only one at the split.
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


def _may_span(token: Any, left: str, right: str) -> bool:
    """Whether an added token, which is matched before all other steps, could include the space or what follows it."""
    text, left, right = (part.casefold() for part in (token.content, left, right))
    if not token.special and (token.lstrip or token.rstrip or text.startswith(right)):
        return True  # special ones are not matched in a text, but may hide others
    return any(text == space or left + space in text or space + right in text for space in _SPACES)


def _is_exact(backend: Any, head: str, before: str, after: str) -> bool:
    """Whether the model gets the same pieces from the head as from its two parts, and joins none across the split."""
    whole, one, other = (_pieces(backend, text) for text in (head, before, after))
    text, cut = "".join(whole), len("".join(one))
    ends, ends_apart = _ends(whole), _ends([*one, *other])
    if text != "".join([*one, *other]) or ends | {cut} != ends_apart:
        return False
    return cut in ends or _never_joins(backend, text[cut - 1 : cut + 1])


def _pieces(backend: Any, text: str) -> list[str]:
    """The pieces of a text that the model tokenizes separately."""
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
    """Whether the model is a BPE without a token that contains these two characters in a row."""
    from tokenizers.models import BPE

    model = backend.model
    if not isinstance(model, BPE) or model.dropout or model.ignore_merges:
        return False
    if model.continuing_subword_prefix or model.end_of_word_suffix or pair[1] not in _SPACES:
        return False
    vocabulary = backend.get_vocab()
    # Both must be tokens, because two unknown characters can be joined.
    return pair[0] in vocabulary and pair[1] in vocabulary and not any(pair in token for token in vocabulary)
