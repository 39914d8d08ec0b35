"""Runs a tokenizer's chat template, and tokenizes what it writes.

A special token that the template writes is one. A special token that occurs in a message is tokenized as characters.
The tokenizer adds none.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nlora.data.chat import Message
from nlora.data.field_error import FieldError
from nlora.errors import first_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Span = tuple[int, int]
"""(begin, end), in characters or tokens."""

_BEGIN, _END = "\U000f0000", "\U000f0001"
"""Around a special token in a message, while the template runs. Private characters, which no text should have."""


class ChatRenderer:
    """The chat template of a fast tokenizer. Raises ValueError if it has none. template: its source."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer: Any = tokenizer
        self.template: str = self._tokenizer.get_chat_template()
        special = [token.content for token in self._tokenizer.added_tokens_decoder.values() if token.special]
        longest_first = sorted(special, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    def render(self, messages: Sequence[Message], *, asks: bool) -> str:
        """The conversation's text. asks: whether an assistant's turn is opened at the end.

        Special tokens that are not the template's stand between marks, which `tokens` takes out.
        Raises FieldError with the message of a template that refuses the conversation.
        """
        chat = [{"role": m.role, "content": self._as_characters(m.content)} for m in messages]
        try:
            return str(self._tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=asks))
        except Exception as error:  # a template is a program, and may raise anything
            raise FieldError(f"the model's chat template refuses it: {first_line(error)}") from error

    def tokens(self, text: str) -> tuple[list[int], list[Span]]:
        """The ids of a rendered text, and the characters of each token."""
        ids: list[int] = []
        spans: list[Span] = []
        begin = 0
        for i, piece in enumerate(re.split(f"{_BEGIN}(.*?){_END}", text, flags=re.DOTALL)):
            found = self._tokenizer(
                piece,
                add_special_tokens=False,
                split_special_tokens=i % 2 == 1,
                return_offsets_mapping=True,
                return_attention_mask=False,
                return_token_type_ids=False,
                verbose=False,
            )
            ids += found["input_ids"]
            spans += [(begin + start, begin + end) for start, end in found["offset_mapping"]]
            begin += len(piece) + 1  # and the mark after it
        return ids, spans

    def ids(self, text: str) -> list[int]:
        """The ids of a rendered text."""
        return self.tokens(text)[0]

    def decoded(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens included."""
        return str(self._tokenizer.decode(ids, clean_up_tokenization_spaces=False))

    def words(self, ids: Sequence[int]) -> str:
        """The text of ids without special tokens, and without spaces around it."""
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text.strip()

    def _as_characters(self, content: str) -> str:
        return self._special.sub(f"{_BEGIN}\\g<0>{_END}", content.replace(_BEGIN, "").replace(_END, ""))
