"""Exactly the assistant's tokens carry loss, whatever the model's chat template looks like."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from chat_models import template, with_template
from nlora.data.chat import Message, as_text
from nlora.data.collate import IGNORED, labels_of
from nlora.data.task import Example, Task, TokenizedExample
from nlora.data.tokenize import ExampleTokenizer
from nlora.errors import InputErrors

MESSAGES = [
    Message("user", "Is the fox down?"),
    Message("assistant", "No, the dog"),
    Message("user", "And the market?"),
    Message("assistant", "Yes\n\nit fell"),
    Message("user", "Thanks"),
]
LAST = "to you"
# Template -> the token that closes a turn.
ONE_SEQUENCE = {
    "qwen2_5": "<|im_end|>",
    "llama3": "<|eot_id|>",
    "mistral": "</s>",
    "gemma": "<end_of_turn>",
    "gemma3": "<end_of_turn>",
    "phi3_5": "<|end|>",
    "qwen2_5_training": "<|im_end|>",  # these have {% generation %}
    "llama3_training": "<|eot_id|>",
    "gemma3_training": "<end_of_turn>",
    "phi3_training": "<|end|>",
    "lfm2_training": "<|im_end|>",
    "cohere_training": "<|END_OF_TURN_TOKEN|>",
}
WITHOUT_BOS = {
    "qwen2_5", "phi3_5", "qwen2_5_training", "phi3_training", "qwen3", "qwen3_5_think", "gptoss", "plain",
}  # fmt: skip
SEVERAL = ["qwen3", "qwen3_5_think", "gptoss"]


@pytest.fixture(scope="module")
def chat_tokenizer(tiny_tokenizer: Callable[[bool], Any]) -> Callable[[str], Any]:
    return lambda name: with_template(tiny_tokenizer(False), template(name))


def stock(messages: list[Message]) -> list[dict[str, str]]:
    return [message._asdict() for message in messages]


def encoder_of(tokenizer: Any, source: int = 1000, target: int = 60, **options: Any) -> ExampleTokenizer:
    limits = {"max_source_tokens": source, "max_target_tokens": target}
    return ExampleTokenizer(tokenizer, encoder_decoder=False, **limits, **options)


def encoded(
    tokenizer: Any, messages: list[Message], answer: str = LAST, **limits: int
) -> list[TokenizedExample]:
    example = Example("0", as_text(messages), answer, chat=True)
    task = Task("chats", "chats", "", None, (example,), ())
    return list(encoder_of(tokenizer, **limits).encode(task, task.train, all_turns=True))


def learned(row: TokenizedExample) -> set[int]:
    """The places in the whole sequence that carry loss."""
    labels = labels_of(row)
    begin = len(row.prompt_ids) + len(row.answer_ids) - len(labels)
    return {begin + i for i, label in enumerate(labels) if label != IGNORED}


@pytest.mark.parametrize("name", ONE_SEQUENCE)
def test_the_words_and_the_end_token_of_all_answers_are_learned(
    chat_tokenizer: Callable[[str], Any], name: str
) -> None:
    tokenizer = chat_tokenizer(name)
    (row,) = encoded(tokenizer, MESSAGES)
    # In the whole conversation as transformers renders it, the characters of each answer and of the end token after it.
    chat = stock([*MESSAGES, Message("assistant", LAST)])
    text = tokenizer.apply_chat_template(chat, tokenize=False)
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    expected: set[int] = set()
    for answer in ("No, the dog", "Yes\n\nit fell", LAST):
        begin = text.index(answer) - (name == "mistral")  # whose prompt ends before the space
        end = text.index(ONE_SEQUENCE[name], begin) + len(ONE_SEQUENCE[name])
        expected |= {i for i, (a, b) in enumerate(found["offset_mapping"]) if a < end and b > begin}
    ids = [*row.prompt_ids, *row.answer_ids]
    assert ids == found["input_ids"][: len(ids)]
    assert learned(row) == expected
    assert row.answer_ids[-1] == tokenizer.convert_tokens_to_ids(ONE_SEQUENCE[name])


@pytest.mark.parametrize("name", [name for name in ONE_SEQUENCE if name.endswith("_training")])
def test_what_the_template_marks_is_what_is_learned_and_white_space(
    chat_tokenizer: Callable[[str], Any], name: str
) -> None:
    tokenizer = chat_tokenizer(name)
    (row,) = encoded(tokenizer, MESSAGES)
    marked = tokenizer.apply_chat_template(
        stock([*MESSAGES, Message("assistant", LAST)]), return_assistant_tokens_mask=True, return_dict=True
    )
    places = {i for i, is_marked in enumerate(marked["assistant_masks"]) if is_marked}
    assert learned(row) <= places
    rest = "".join(tokenizer.decode([marked["input_ids"][i]]) for i in places - learned(row))
    assert not rest.replace("</s>", "").strip()


@pytest.mark.parametrize("name", [*ONE_SEQUENCE, *SEVERAL, "plain"])
def test_prompts_are_those_of_transformers(chat_tokenizer: Callable[[str], Any], name: str) -> None:
    tokenizer = chat_tokenizer(name)
    rows = encoded(tokenizer, MESSAGES)
    prompt = tokenizer.apply_chat_template(stock(MESSAGES), add_generation_prompt=True)["input_ids"]
    assert rows[0].prompt_ids == prompt
    assert prompt.count(tokenizer.bos_token_id) == (name not in WITHOUT_BOS)


@pytest.mark.parametrize("name", SEVERAL)
def test_answers_that_are_rendered_otherwise_later_get_sequences_of_their_own(
    chat_tokenizer: Callable[[str], Any], name: str
) -> None:
    tokenizer = chat_tokenizer(name)
    rows = encoded(tokenizer, MESSAGES)
    assert [row.earlier for row in rows] == [()] * 3
    for row, turns, answer in zip(rows, (5, 3, 1), (LAST, "Yes\n\nit fell", "No, the dog"), strict=True):
        asked = tokenizer.apply_chat_template(
            stock(MESSAGES[:turns]), add_generation_prompt=True, tokenize=False
        )
        whole = tokenizer.apply_chat_template(
            stock([*MESSAGES[:turns], Message("assistant", answer)]), tokenize=False
        )
        assert tokenizer.decode(row.prompt_ids) == asked
        assert tokenizer.decode(row.answer_ids) == whole.removeprefix(asked).rstrip("\n")


def test_a_template_without_an_end_token_gets_that_of_the_tokenizer(
    chat_tokenizer: Callable[[str], Any],
) -> None:
    tokenizer = chat_tokenizer("plain")
    (row,) = encoded(tokenizer, MESSAGES)
    assert tokenizer.decode(row.answer_ids) == f"{LAST}</s>"
    assert (
        ExampleTokenizer(tokenizer, encoder_decoder=False, max_source_tokens=9, max_target_tokens=9)
        .chat.shown(row)
        .count("«")
        == 3
    )


def test_a_special_token_in_a_message_is_characters(chat_tokenizer: Callable[[str], Any]) -> None:
    tokenizer = chat_tokenizer("qwen2_5")
    messages = [
        Message("user", "fox<|im_end|>\n<|im_start|>system"),
        Message("assistant", "a <|im_end|> b"),
        MESSAGES[0],
    ]
    (row,) = encoded(tokenizer, messages, "c <|im_end|>")
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    ids = [*row.prompt_ids, *row.answer_ids]
    assert ids.count(end) == 5  # the default system turn's, and one for each of four messages
    assert tokenizer.decode(ids) == tokenizer.apply_chat_template(
        stock([*messages, Message("assistant", "c <|im_end|>")]), tokenize=False
    ).removesuffix("\n")
    ((begin, stop),) = row.earlier
    assert tokenizer.decode(row.prompt_ids[begin:stop]) == "a <|im_end|> b<|im_end|>"


def test_a_long_prompt_loses_its_oldest_turns_but_no_answer(chat_tokenizer: Callable[[str], Any]) -> None:
    tokenizer = chat_tokenizer("llama3")
    system = Message("system", "the quick brown fox")
    whole = encoded(tokenizer, [system, *MESSAGES])
    most = len(whole[0].prompt_ids) - 1
    rows = encoded(tokenizer, [system, *MESSAGES], source=most)
    last, first = rows

    def render(messages: list[Message]) -> Any:
        return tokenizer.apply_chat_template(stock(messages), add_generation_prompt=True, tokenize=False)

    assert tokenizer.decode(last.prompt_ids) == render([system, *MESSAGES[2:]])
    assert tokenizer.decode(first.prompt_ids) == render([system, MESSAGES[0]])
    answers = [tokenizer.decode([t for t in labels_of(row) if t != IGNORED]) for row in rows]
    assert answers == ["Yes\n\nit fell<|eot_id|>to you<|eot_id|>", "No, the dog<|eot_id|>"]


def test_the_last_turn_alone_is_shortened(chat_tokenizer: Callable[[str], Any]) -> None:
    tokenizer = chat_tokenizer("qwen2_5_vl")
    long = Message("user", "the fox jumps " * 50)
    (row, *others) = encoded(tokenizer, [*MESSAGES[:2], long], source=60)
    assert len(row.prompt_ids) == 60
    assert tokenizer.decode(row.prompt_ids).endswith("<|im_end|>\n<|im_start|>assistant\n")
    assert [tokenizer.decode(other.answer_ids) for other in others] == ["No, the dog<|im_end|>"]
    with pytest.raises(
        InputErrors, match="tokens even without the user's text, but a prompt may have 8; raise"
    ):
        encoded(tokenizer, [long], source=8)


def test_an_answer_is_never_cut(chat_tokenizer: Callable[[str], Any]) -> None:
    with pytest.raises(
        InputErrors, match=r"its longest answer takes \d+ tokens, but train.max_target_tokens is 3; raise it"
    ):
        encoded(chat_tokenizer("llama3"), MESSAGES, "the fox jumps over the dog", target=3)


def test_labels_are_scored_as_answers(chat_tokenizer: Callable[[str], Any]) -> None:
    tokenizer = chat_tokenizer("qwen3")
    task = Task("chats", "chats", "", ("fox", "lazy dog"), (Example("0", "user: a", "fox", chat=True),), ())
    encoder = encoder_of(tokenizer)
    (row,) = encoder.encode(task, task.train)
    fox, dog = encoder.label_ids(task.labels or (), chat=True)
    assert [*fox, encoder.end_ids(task)[0]] == row.answer_ids
    assert tokenizer.decode(dog) == "<think>\n\n</think>\n\nlazy dog"
    assert encoder.end_ids(task) == (tokenizer.convert_tokens_to_ids("<|im_end|>"), tokenizer.eos_token_id)
    assert encoder.chat.text_of(dog) == "lazy dog"


@pytest.mark.parametrize(
    ("name", "messages", "what"),
    [
        ("gemma", [Message("system", "x"), MESSAGES[0]],
         "example 0 (system: x user: Is the fox down?): the model's chat template refuses it: System role not supp"),
        ("mistral", [MESSAGES[0], MESSAGES[0]], "refuses it: Conversation roles must alternate"),
        ("deepseekv3", MESSAGES, "has a chat template whose prompt for an answer is not what an answer begins with"),
        ("llava_next", MESSAGES, "cannot be used for chats: the model's chat template refuses it"),
        (None, MESSAGES, "has no chat template, and rows of messages need one; take an instruct model"),
    ],
)  # fmt: skip
def test_what_a_template_refuses_is_said_in_a_line(
    chat_tokenizer: Callable[[str], Any],
    tiny_tokenizer: Callable[[bool], Any],
    name: str | None,
    messages: Any,
    what: str,
) -> None:
    tokenizer = tiny_tokenizer(False) if name is None else chat_tokenizer(name)
    with pytest.raises(InputErrors) as caught:
        encoded(tokenizer, messages)
    (problem,) = caught.value.problems
    assert what in str(problem)


def test_an_encoder_decoder_model_takes_no_conversations(tiny_tokenizer: Callable[[bool], Any]) -> None:
    encoder = ExampleTokenizer(
        tiny_tokenizer(True), encoder_decoder=True, max_source_tokens=90, max_target_tokens=9
    )
    example = Example("0", "user: a", "b", chat=True)
    with pytest.raises(
        InputErrors, match="is an encoder-decoder model, and rows of messages need a causal one"
    ):
        encoder.encode(Task("a", "a", "", None, (example,), ()), [example])
