"""Prompts and answers -> token ids.

`ExampleTokenizer(tokenizer, ...).encode(task, task.train)` gives `TokenizedExamples`.

For encoder-decoder models, the prompt gets the tokenizer's special tokens, and the answer is tokenized separately. For
causal models, the answer continues the prompt: it is " " + label, as the tokenizer splits it after "Answer:", and the
end token.

In a prompt that is too long, the text is shortened; the instruction and "Answer:" stay. `truncate="released"` does what
the released code did instead: it cuts the ids, decodes them, and tokenizes the result again, which loses "Answer:"
and, with T5, every newline.

Where it is exact, the common beginning of a task's prompts is tokenized only once (`nlora.data.head_split`). It is
stored only once (`nlora.data.columns`). With a cache (`nlora.data.token_cache`), later runs read the ids.

A special token in a text ("<s>" in HTML) is read as characters, if it is no piece of the vocabulary, as T5's "</s>" is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Literal

from nlora.data import prompts
from nlora.data.backend import backend_of, ids_of
from nlora.data.chat_template import ChatTemplate
from nlora.data.columns import Columns, TokenizedExamples
from nlora.data.continuation import ids_after
from nlora.data.conversations import conversations
from nlora.data.head_split import split_head
from nlora.data.shorten import fit, fit_by_search
from nlora.data.task import Example, Task, TokenizedExample
from nlora.data.text_batches import text_batches
from nlora.errors import InputErrors, ModelError, Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from nlora.data.token_cache import TokenCache


class ExampleTokenizer:
    """Tokenizes examples for one model.

    max_source_tokens: the most tokens in a prompt, special tokens included.
    max_target_tokens: the most tokens in an answer, end token included.
    text_positions: the number of positions that the model has for prompt and answer (causal) or for the prompt
        (encoder-decoder); None: no limit.
    known_tokens: the number of rows of the model's embedding; None: no limit.
    generates: whether answers to tasks with labels are generated, so that they may take max_target_tokens.
    cache: keeps the ids for later runs; None: no cache.
    begin_ids: the special tokens before every text.
    end_id: the end token of every answer; that of answers in conversations is the chat template's (`end_ids`).
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        encoder_decoder: bool,
        max_source_tokens: int,
        max_target_tokens: int,
        text_positions: int | None = None,
        known_tokens: float | None = None,
        generates: bool = False,
        truncate: Literal["text", "released"] = "text",
        cache: TokenCache | None = None,
    ) -> None:
        if tokenizer.eos_token_id is None:
            raise ModelError("the tokenizer has no end token, so answers could not end")
        self._tokenizer = tokenizer
        self._backend = backend_of(tokenizer)
        self.encoder_decoder = encoder_decoder
        self.max_source_tokens = max_source_tokens
        self.max_target_tokens = max_target_tokens
        self.text_positions = text_positions
        self._known_tokens = known_tokens
        self._generates = generates
        self._truncate = truncate
        self._cache = cache
        self.end_id = int(tokenizer.eos_token_id)
        self.begin_ids, self._after = self._special_ids()
        self._label_ids: dict[str, list[int]] = {}
        self._heads: dict[str, tuple[list[int], str]] = {}

    @cached_property
    def chat(self) -> ChatTemplate:
        """The model's chat template. Raises InputErrors if it has none, or none of use."""
        return ChatTemplate(self._tokenizer, encoder_decoder=self.encoder_decoder)

    def encode(
        self, task: Task, examples: Sequence[Example], *, all_turns: bool = False
    ) -> TokenizedExamples:
        """The ids of examples of one task, in their order.

        all_turns: for training; a conversation's earlier answers count, and it may become several examples.

        Raises InputErrors if the instruction leaves no space for the text, if a label does not fit into
        max_target_tokens, if two labels have the same tokens, or if the model does not know a token.
        """
        self._check_labels(task)

        def tokenize() -> Columns:
            return Columns.of(self._rows(task, examples, all_turns))

        if self._cache is None:
            columns = tokenize()
        else:
            settings = self._settings(task, all_turns)
            columns = self._cache.columns(settings, prompts.head(task), examples, tokenize)
        rows = TokenizedExamples([columns])
        self._check_known(task, rows)
        return rows

    def _check_known(self, task: Task, rows: TokenizedExamples) -> None:
        """A token that was added to the tokenizer has no row in the embedding, unless that was resized."""
        largest = rows.largest_id
        if self._known_tokens is not None and largest >= self._known_tokens:
            token = self._tokenizer.convert_ids_to_tokens(largest)
            what = (
                f"a text, a label or the instruction contains '{token}', token {largest} of the tokenizer, but the "
                f"model's embedding ends at {self._known_tokens - 1:.0f}; remove it, or resize the embedding"
            )
            raise InputErrors([Problem(f"task {task.name}", what)])

    def _rows(
        self, task: Task, examples: Sequence[Example], all_turns: bool
    ) -> Iterator[tuple[TokenizedExample, bool]]:
        """Each example, and whether its text was shortened."""
        if task.chat:
            room, most = self.longest_prompt(task), self.max_target_tokens
            yield from conversations(self.chat, task.name, examples, room, most, all_turns=all_turns)
            return
        for some in text_batches(examples, len(self._head(task)[1])):
            for ids, is_cut, example in zip(*self._prompts(task, some), some, strict=True):
                yield TokenizedExample(ids, self.answer_ids(example.label)), is_cut

    def _settings(self, task: Task, all_turns: bool) -> dict[str, Any]:
        """What determines the ids of a task's examples, apart from tokenizer, head and examples."""
        return {
            "encoder_decoder": self.encoder_decoder,
            "longest_prompt": self.longest_prompt(task),
            "max_target_tokens": self.max_target_tokens,
            "truncate": self._truncate,
            "special": [self.begin_ids, self._after, self.end_id],
            "tail": prompts.TAIL,
            "labels": task.labels,
            "chat": [self.chat.identity, all_turns] if task.chat else None,
        }

    def longest_prompt(self, task: Task) -> int:
        """The most tokens that a prompt of the task may have, special tokens included."""
        if self.text_positions is None:
            return self.max_source_tokens
        return min(self.max_source_tokens, self.text_positions - self._answer_room(task))

    def longest_text(self, tasks: Sequence[Task]) -> int:
        """The most tokens that the model may read at once: a prompt and, if it is causal, the answer."""
        return max((self.longest_prompt(task) + self._answer_room(task) for task in tasks), default=0)

    def _answer_room(self, task: Task) -> int:
        """The positions of a causal model that an answer may take, end token included."""
        if self.encoder_decoder:
            return 0
        if task.labels is None or self._generates:
            return self.max_target_tokens
        return max(len(self._answer(label, task.chat)) for label in task.labels) + 1

    def prompt_ids(self, task: Task, example: Example) -> list[int]:
        """The ids of one prompt, at most `longest_prompt(task)`."""
        return self._prompts(task, [example])[0][0]

    def answer_ids(self, text: str) -> list[int]:
        """The ids of an answer with its end token, at most max_target_tokens."""
        return [*self._answer(text)[: self.max_target_tokens - 1], self.end_id]

    def label_ids(self, labels: Sequence[str], *, chat: bool = False) -> list[list[int]]:
        """The ids of each label as an answer, without the end token. chat: in a conversation."""
        return [list(self._answer(label, chat)) for label in labels]

    def end_ids(self, task: Task) -> tuple[int, ...]:
        """The end token of the task's answers and, if it is another one, the tokenizer's."""
        return tuple(dict.fromkeys((self.chat.end_id if task.chat else self.end_id, self.end_id)))

    def _prompts(self, task: Task, examples: Sequence[Example]) -> tuple[list[list[int]], list[bool]]:
        """The ids of each prompt, and whether its text was shortened."""
        begin, head = self._head(task)
        texts = [example.sentence for example in examples]
        rests = self._tokenize([head + text + prompts.TAIL for text in texts])["input_ids"]
        plain: list[list[int]] = [begin + ids for ids in rests]
        most = self.longest_prompt(task)
        room = most - len(self.begin_ids) - len(self._after)
        is_cut = [len(ids) > room for ids in plain]
        long = [i for i, is_long in enumerate(is_cut) if is_long]
        if long and self._truncate == "released":
            cut = [self.begin_ids + plain[i][: most - len(self.begin_ids)] for i in long]
            decoded = [str(self._tokenizer.decode(ids, skip_special_tokens=True)) for ids in cut]
            for i, ids in zip(long, self._tokenize(decoded)["input_ids"], strict=True):
                plain[i] = ids[:room]
        elif long:
            self._check_room(task, room)
            fitting = self._fit(head, [texts[i] for i in long], room - len(begin))
            for i, ids in zip(long, fitting, strict=True):
                plain[i] = begin + ids
        return [[*self.begin_ids, *ids, *self._after] for ids in plain], is_cut

    def _head(self, task: Task) -> tuple[list[int], str]:
        """The known ids of the beginning of a task's prompts, and the rest of the head; see `split_head`."""
        head = prompts.head(task)
        if head not in self._heads:
            self._heads[head] = split_head(self._tokenizer, head, self.plain_ids)
        return self._heads[head]

    def _fit(self, head: str, texts: list[str], room: int) -> list[list[int]]:
        if self._tokenizer.is_fast:
            return fit(partial(self._tokenize, offsets=True), head, texts, prompts.TAIL, room)
        return fit_by_search(self.plain_ids, head, texts, prompts.TAIL, room)

    def _check_room(self, task: Task, room: int) -> None:
        needed = len(self.plain_ids(prompts.head(task) + prompts.TAIL))
        if needed >= room:
            total, most = needed + len(self.begin_ids) + len(self._after), self.longest_prompt(task)
            if most == self.max_source_tokens:
                limit, way_out = f"but max_source_tokens is {most}", "raise it, or shorten them"
            else:
                limit = f"but the model has {self.text_positions} positions"
                answer, way_out = self._answer_room(task), "shorten them"
                limit += f", {answer} of them for the answer" if answer else ""
                way_out += ", or lower train.max_target_tokens" if answer == self.max_target_tokens else ""
            what = f"its instruction and options alone take {total} tokens, {limit}; {way_out}"
            raise InputErrors([Problem(f"task {task.name}", what)])

    def _check_labels(self, task: Task) -> None:
        """Labels must have different ids, so none may be cut and no two may be the same."""
        problems = []
        seen: dict[tuple[int, ...], str] = {}
        for label in task.labels or ():
            ids = self._answer(label, task.chat)
            if len(ids) + 1 > self.max_target_tokens:
                what = (
                    f"label '{label}' takes {len(ids) + 1} tokens with its end token, but train.max_target_tokens is "
                    f"{self.max_target_tokens}; raise it"
                )
                problems.append(Problem(f"task {task.name}", what))
            other = seen.setdefault(tuple(ids), label)
            if other != label:
                what = f"labels '{other}' and '{label}' have the same tokens; rename one"
                problems.append(Problem(f"task {task.name}", what))
        if problems:
            raise InputErrors(problems)

    def _answer(self, text: str, chat: bool = False) -> list[int]:
        """The answer's ids without the end token. Memoized, because most answers are one of a few labels."""
        if chat:
            return self.chat.answer_ids(text)[:-1]
        if text not in self._label_ids:
            alone = [*self.begin_ids, *self.plain_ids(text)]
            self._label_ids[text] = self._after_answer(text) if not self.encoder_decoder else alone
        return self._label_ids[text]

    def _after_answer(self, text: str) -> list[int]:
        """The ids of " " + text after "Answer:"; if the tokenizer merges across it, with or without the space."""
        after, decode = f" {text}", lambda ids: str(self._tokenizer.decode(ids))
        if (found := ids_after(self.plain_ids, decode, prompts.TAIL, after, [after, text])) is not None:
            return found
        raise ModelError(f"the tokenizer cannot represent the answer '{text}' after 'Answer:'")

    def _special_ids(self) -> tuple[list[int], list[int]]:
        """The special tokens before and after a prompt.

        A causal model's prompt has no end token, as its answer follows, and at most one BOS, even if the tokenizer
        adds two.
        """
        plain = self.plain_ids(prompts.TAIL)
        whole, n = self._tokenizer(prompts.TAIL, verbose=False)["input_ids"], len(plain)
        start = next((i for i in range(len(whole) - n + 1) if whole[i : i + n] == plain), None)
        if start is None:
            raise ModelError("the tokenizer changes the tokens of a text when it adds special ones")
        before, after = whole[:start], whole[start + n :]
        return (list(dict.fromkeys(before)), []) if not self.encoder_decoder else (before, after)

    def plain_ids(self, text: str) -> list[int]:
        """The ids of any text, without special tokens."""
        return list(self._tokenize([text])["input_ids"][0])

    def _tokenize(self, texts: list[str], *, offsets: bool = False) -> Mapping[str, Any]:
        """input_ids of each text, without special tokens; with offsets also offset_mapping, each token's characters."""
        if self._backend is not None and not offsets:
            return {"input_ids": ids_of(self._backend, texts)}
        batch: Mapping[str, Any] = self._tokenizer(
            texts,
            add_special_tokens=False,
            split_special_tokens=True,
            return_attention_mask=False,
            return_token_type_ids=False,
            return_offsets_mapping=offsets,
            verbose=False,
        )
        return batch
