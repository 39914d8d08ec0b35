"""A model's own chat template: conversations -> token ids, and which of them are the assistant's.

A conversation is one sequence. Its prompt is what the template makes of all messages before the last answer, ending
with the opening of an assistant's turn; it is what the model gets when it answers, token by token. The answer is what
the template adds for the answer, up to the token that closes a turn.

An earlier answer lies within the prompt: it is what follows the prompt for that turn, if the conversation up to the
turn is rendered as the beginning of the whole. Some templates render earlier turns otherwise (they drop the thoughts of
earlier answers, for example). Then each answer gets a sequence of its own, with all that comes before it as the prompt.
`{% generation %}` in a template is not needed. It often marks more than the model generates, such as the newline after
the token that closes a turn.

In a prompt that is too long, the oldest turns are left out, but not the system's. The answers among them get a
sequence of their own. Only if the last turn alone is too long, its text is shortened.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from nlora.data.chat import Message
from nlora.data.chat_render import ChatRenderer, Span
from nlora.data.continuation import ids_after
from nlora.data.field_error import FieldError
from nlora.data.task import TokenizedExample
from nlora.errors import InputErrors, Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ASKED, _ANSWER = Message("user", "Hello"), Message("assistant", "World")
"""A conversation that every template takes, from which is read how it opens and closes an answer."""


class _Prompt(NamedTuple):
    """What the template makes of some messages and the opening of the next answer.

    messages: those that are in it. left_out: the number of messages that are not, after those of the system.
    tokens: the characters of each token.
    """

    messages: list[Message]
    left_out: int
    text: str
    ids: list[int]
    tokens: list[Span]
    is_shortened: bool = False


class ChatTemplate:
    """The chat template of a tokenizer.

    end_id: the token that closes an answer; the tokenizer's end token if the template writes none.
    identity: what determines the ids of a conversation, apart from tokenizer and conversation.

    Raises InputErrors for a tokenizer without one, or with one that does not show where an answer begins.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, encoder_decoder: bool = False) -> None:
        self._name = tokenizer.name_or_path
        if encoder_decoder:
            raise self._unfit("is an encoder-decoder model, and rows of messages need a causal one")
        if not tokenizer.is_fast:
            raise self._unfit(
                "has a tokenizer in plain Python, which does not tell the characters of a token"
            )
        try:
            self._chat = ChatRenderer(tokenizer)
        except ValueError:
            raise self._unfit(
                "has no chat template, and rows of messages need one; take an instruct model (its name often ends "
                "with -Instruct), or rows with a text as sentence and an answer as label"
            ) from None
        self._base, whole, before, self._closing = self._two_turns()
        # What an answer may have before the assistant's words, such as empty thoughts.
        self._opening = self._chat.words(self._after_prompt(before)) if before else ""
        self._end = _first_token(tokenizer, self._closing)
        ends: Any = (
            tokenizer.eos_token_id if self._end is None else tokenizer.convert_tokens_to_ids(self._end)
        )
        self.end_id = int(ends)
        # The rendered conversation, because a template may write the date into it.
        self.identity = [self._chat.template, whole, self.end_id]

    def _two_turns(self) -> tuple[str, str, str, str]:
        """A conversation as rendered: its prompt, the whole, and what is in the answer before and after its words."""
        try:
            base = self._chat.render([_ASKED], asks=True)
            whole = self._chat.render([_ASKED, _ANSWER], asks=False)
        except FieldError as error:
            raise self._unfit(f"cannot be used for chats: {error}") from None
        before, found, closing = whole.removeprefix(base).rpartition(_ANSWER.content)
        if not whole.startswith(base) or not found:
            raise self._unfit(
                "has a chat template whose prompt for an answer is not what an answer begins with, so it cannot be "
                "told which tokens are the assistant's; set another chat_template in its tokenizer's files"
            )
        return base, whole, before, closing

    def _unfit(self, what: str) -> InputErrors:
        return InputErrors([Problem.at(("model",), f"{self._name} {what}")])

    def rows(
        self, messages: Sequence[Message], answer: str, room: int, *, all_turns: bool
    ) -> Iterator[tuple[TokenizedExample, bool]]:
        """The last answer of a conversation and its prompt, and whether that had to be cut.

        messages: those before the answer. room: the most tokens of a prompt.
        all_turns: all other answers as well, in the same sequence if possible, else in further ones.
        Raises FieldError if the template refuses the conversation, or the last turn does not fit.
        """
        while True:
            prompt = self._prompt(messages, room)
            spans = self._earlier(prompt) if all_turns else None
            earlier = tuple(_token_span(prompt.tokens, span) for span in spans or ())
            ids = self._answer(prompt.messages, prompt.text, answer)
            yield TokenizedExample(prompt.ids, ids, earlier), prompt.left_out > 0 or prompt.is_shortened
            # The answers that are in none of the sequences so far come before this message.
            before = len(messages) if spans is None else len(_system(messages)) + prompt.left_out
            at = max(_answers(messages[:before]), default=None) if all_turns else None
            if at is None:
                return
            messages, answer = messages[:at], messages[at].content

    def answer_ids(self, text: str) -> list[int]:
        """The ids of an answer that does not depend on the conversation, such as a label, with its end token."""
        try:
            return self._answer([_ASKED], self._base, text)
        except FieldError as error:
            raise self._unfit(f"cannot answer '{text}' in a chat: {error}") from None

    def text_of(self, ids: Sequence[int]) -> str:
        """The words of a generated answer, given without its end token."""
        return self._chat.words(ids).removeprefix(self._opening).strip()

    def shown(self, row: TokenizedExample) -> str:
        """A sequence as a text, with the tokens that count in the loss between « and »."""
        begin, parts = 0, []
        for span in row.earlier:
            parts += [row.prompt_ids[begin : span[0]], row.prompt_ids[slice(*span)]]
            begin = span[1]
        parts += [row.prompt_ids[begin:], row.answer_ids]
        texts = map(self._chat.decoded, parts)
        return "".join(f"«{text}»" if i % 2 else text for i, text in enumerate(texts))

    # The prompt

    def _prompt(self, messages: Sequence[Message], room: int) -> _Prompt:
        """The prompt of as many of the last messages as fit."""
        whole = self._rendered(messages, 0)
        if len(whole.ids) <= room:
            return whole
        system = len(_system(messages))
        turns = [i - system for i, m in enumerate(messages) if m.role == "user" and i > system]
        # The first of the later turns from which on all fit.
        at = bisect_left(turns, True, key=lambda i: len(self._rendered(messages, i).ids) <= room)
        if at < len(turns):
            return self._rendered(messages, turns[at])
        return self._shortened(messages, turns[-1] if turns else 0, room)

    def _rendered(self, messages: Sequence[Message], left_out: int) -> _Prompt:
        system = _system(messages)
        kept = [*system, *messages[len(system) + left_out :]]
        text = self._chat.render(kept, asks=True)
        return _Prompt(kept, left_out, text, *self._chat.tokens(text))

    def _shortened(self, messages: Sequence[Message], left_out: int, room: int) -> _Prompt:
        """The prompt of the last turn, with the user's text shortened."""
        last = max(i for i, message in enumerate(messages) if message.role == "user")
        text = messages[last].content

        def with_characters(n: int) -> _Prompt:
            return self._rendered(
                [*messages[:last], Message("user", text[:n]), *messages[last + 1 :]], left_out
            )

        n = bisect_right(range(len(text)), room, key=lambda n: len(with_characters(n).ids)) - 1
        if n < 0:
            what = f"its last turn takes {len(with_characters(0).ids)} tokens even without the user's text"
            raise FieldError(f"{what}, but a prompt may have {room}; raise train.max_source_tokens")
        return with_characters(n)._replace(is_shortened=True)

    def _earlier(self, prompt: _Prompt) -> list[Span] | None:
        """The earlier answers in a prompt, in characters; None if they are not rendered as when they were given."""
        if prompt.is_shortened:
            return None
        spans = []
        for i in _answers(prompt.messages):
            asked = self._chat.render(prompt.messages[:i], asks=True)
            whole = self._chat.render(prompt.messages[: i + 1], asks=False)
            answered = asked + self._closed(whole.removeprefix(asked))
            if not whole.startswith(asked) or not prompt.text.startswith(answered):
                return None
            spans.append((len(asked), len(answered)))
        return spans

    # The answer

    def _answer(self, messages: Sequence[Message], prompt: str, text: str) -> list[int]:
        """The ids of the answer to a prompt, with its end token."""
        whole = self._chat.render([*messages, Message("assistant", text)], asks=False)
        if not whole.startswith(prompt):
            raise FieldError(
                "the model's chat template does not begin its last turn as it asks for an answer"
            )
        ids = self._after_prompt(self._closed(whole.removeprefix(prompt)))
        return ids if ids[-1:] == [self.end_id] else [*ids, self.end_id]

    def _closed(self, answer: str) -> str:
        """The answer as rendered, up to the token that closes the turn."""
        if self._end is None:
            return answer.removesuffix(self._closing)
        before, end, _ = answer.rpartition(self._end)
        return before + end if end else answer

    def _after_prompt(self, answer: str) -> list[int]:
        """The ids of a text after a prompt. All prompts end alike, so after that of the conversation of two turns."""
        found = ids_after(self._chat.ids, self._chat.decoded, self._base, answer, [answer])
        if found is None:
            raise FieldError(
                "the tokenizer cannot represent the answer after the opening of the assistant's turn"
            )
        return found


def _first_token(tokenizer: PreTrainedTokenizerBase, text: str) -> str | None:
    """The special or added token that a text begins with, apart from spaces."""
    known: Any = tokenizer.added_tokens_decoder
    start = text.lstrip()
    found = [
        token.content for token in known.values() if token.content.strip() and start.startswith(token.content)
    ]
    return max(found, key=len, default=None)


def _system(messages: Sequence[Message]) -> list[Message]:
    """The messages before the first turn."""
    first = next((i for i, message in enumerate(messages) if message.role != "system"), len(messages))
    return list(messages[:first])


def _answers(messages: Sequence[Message]) -> list[int]:
    """Indices of the assistant's turns that answer the user; a greeting before the user's first turn is none."""
    first = next((i for i, message in enumerate(messages) if message.role == "user"), len(messages))
    return [i for i, message in enumerate(messages) if i > first and message.role == "assistant"]


def _token_span(tokens: Sequence[Span], span: Span) -> Span:
    """The tokens that have a character of the span; tokens: the characters of each, in their order."""
    begin = bisect_right(tokens, span[0], key=lambda token: token[1])
    return begin, bisect_left(tokens, span[1], key=lambda token: token[0])
