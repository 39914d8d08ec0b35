"""The part of a tokenizer that is in Rust, where a text's ids are its work alone.

backend = backend_of(tokenizer)           # None: Python has a say in them, so the tokenizer is to be asked itself
ids_of(backend, ["Some text"])            # what tokenizer(..., add_special_tokens=False) gives, in less time
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def backend_of(tokenizer: PreTrainedTokenizerBase) -> Any | None:
    """The tokenizer of the package tokenizers behind one of transformers' own classes."""
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

    kind: Any = type(tokenizer)
    if (
        isinstance(tokenizer, PreTrainedTokenizerFast)
        and kind.__module__.startswith("transformers.")
        and kind.__call__ is PreTrainedTokenizerBase.__call__
        and kind._encode_plus is PreTrainedTokenizerFast._encode_plus
    ):
        return tokenizer.backend_tokenizer
    return None


def ids_of(backend: Any, texts: list[str]) -> list[list[int]]:
    """The ids of each text without special tokens, and with those that stand in it read as characters."""
    backend.encode_special_tokens = True
    backend.no_truncation()
    backend.no_padding()
    # Nobody asks where each token stands in the text; keeping count of it takes a quarter of the time.
    return [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]
