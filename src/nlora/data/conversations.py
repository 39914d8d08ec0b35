"""The conversations of a task -> tokenized examples, with the mistakes of all of them at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from nlora.data.chat import messages_of
from nlora.data.chat_template import ChatTemplate
from nlora.data.field_error import FieldError
from nlora.data.rows import ProblemList
from nlora.data.task import Example, TokenizedExample
from nlora.errors import InputErrors

_SHOWN_CHARACTERS = 60


def conversations(
    template: ChatTemplate, task: str, examples: Sequence[Example], room: int, most: int, *, all_turns: bool
) -> Iterator[tuple[TokenizedExample, bool]]:
    """The sequences of all conversations, and whether the prompt of each had to be cut.

    task: its name. room, most: the most tokens of a prompt and of an answer. all_turns: see `ChatTemplate.rows`.
    Raises InputErrors, at the end, for conversations that the template refuses, and for answers that are too long.
    """
    problems = ProblemList(f"task {task}")
    longest = 0
    for example in examples:
        try:
            rows = template.rows(messages_of(example.sentence), example.label, room, all_turns=all_turns)
            for row, is_cut in rows:
                longest = max(longest, len(row.answer_ids))
                yield row, is_cut
        except FieldError as error:
            start = example.sentence[:_SHOWN_CHARACTERS].replace("\n", " ")
            problems.add(f"task {task}, example {example.id} ({start})", str(error))
    if longest > most:
        what = f"its longest answer takes {longest} tokens, but train.max_target_tokens is {most}; raise it"
        problems.add(f"task {task}", what)
    if found := problems.report():
        raise InputErrors(found)
