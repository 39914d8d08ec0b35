"""Heads that are tokenized once: exactly the ids of whole prompts, and no split that a tokenizer could look across."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from family_tokenizers import (
    CORPUS,
    LABELS,
    TASK,
    byte_level,
    gemma,
    gpt2,
    llama2,
    llama3,
    mistral,
    sentencepiece_bpe,
    t5,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from nlora.data.head_split import split_head
from nlora.data.prompts import TAIL, head, prompt
from nlora.data.task import Example, Task
from nlora.data.tokenize import ExampleTokenizer

TASKS = [
    replace(TASK, labels=(*LABELS, "c9")),
    Task("agnews", "TC", "What is the topic?", ("ünï", "好", "坏"), (), ()),
    Task("copa", "TC", "", None, (), ()),
    Task("notes", "QA", "Read the text, and say in 3 words what it is about.", None, (), ()),
]


def fast(backend: Tokenizer) -> Any:
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>")


def bert() -> Any:
    backend = Tokenizer(models.WordPiece(unk_token="<unk>"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    specials = ["<unk>", "</s>"]
    backend.train_from_iterator(
        CORPUS, trainers.WordPieceTrainer(vocab_size=300, special_tokens=specials, show_progress=False)
    )
    return fast(backend)


def albert() -> Any:
    """Several normalizers, then a unigram model on each word."""
    backend = t5().backend_tokenizer
    quotes = [normalizers.Replace("``", '"'), normalizers.Replace("''", '"')]
    spaces = [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    parts = [*quotes, *spaces, normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase()]
    backend.normalizer = normalizers.Sequence(parts)
    return fast(backend)


def prefixed() -> Any:
    """A space is added before a text that does not begin with one."""
    backend = byte_level(["<unk>", "</s>"], [])
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return fast(backend)


def digits() -> Any:
    backend = byte_level(["<unk>", "</s>"], [])
    split = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    backend.pre_tokenizer = pre_tokenizers.Sequence(split)
    backend.normalizer = normalizers.NFC()
    return fast(backend)


def gpt4o() -> Any:
    upper, lower = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
    short = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    pattern = (
        rf"[^\r\n\p{{L}}\p{{N}}]?{upper}*{lower}+{short}|[^\r\n\p{{L}}\p{{N}}]?{upper}+{lower}*{short}|\p{{N}}{{1,3}}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    return fast(byte_level(["<unk>", "</s>"], [pre_tokenizers.Split(Regex(pattern), "isolated")]))


def newlines_and_runs() -> Any:
    """Newlines and runs of spaces are added tokens, as in Gemma and GPT-NeoX."""
    tokenizer = gemma()
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in ("\n", "\n\n", "  ", "   ", "▁▁")])
    return tokenizer


SPLIT = [gpt2, llama3, llama2, mistral, gemma, t5, bert, albert, prefixed, digits, gpt4o, newlines_and_runs]


def unknown_pattern() -> Any:
    """Everything up to a semicolon, however far away; otherwise words."""
    split = pre_tokenizers.Split(Regex(r"[^;]*;| ?\w+|\W"), "isolated")
    return fast(byte_level(["<unk>", "</s>"], [split]))


def across_words() -> Any:
    """Tokens span spaces."""
    backend = sentencepiece_bpe()
    backend.pre_tokenizer = None
    backend.normalizer = normalizers.Replace(" ", "▁")
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=["<unk>", "</s>"], show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    return fast(backend)


def unsplit_unigram() -> Any:
    backend = t5().backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    return fast(backend)


def added_across() -> Any:
    tokenizer = gpt2()
    tokenizer.add_tokens([", c9"])
    return tokenizer


def greedy_added() -> Any:
    tokenizer = gpt2()
    tokenizer.add_tokens([AddedToken("c9", lstrip=True)])
    return tokenizer


def added_from_the_last_word() -> Any:
    """No space is added before an added token, so one that begins after the split would lose its space."""
    tokenizer = llama2()
    tokenizer.add_tokens([AddedToken("c9 \nfox", normalized=False)])
    return tokenizer


class Own(PreTrainedTokenizerFast):  # type: ignore[misc, unused-ignore]
    """A class with unknown code."""


def own() -> Any:
    return Own(tokenizer_object=gpt2().backend_tokenizer, eos_token="<|endoftext|>")


ADDED = [added_across, greedy_added, added_from_the_last_word]
WHOLE = [unknown_pattern, across_words, unsplit_unigram, *ADDED, own, ByT5Tokenizer]


made = cache(lambda make: make())  # training is not deterministic


def encoder_of(make: Any, **options: Any) -> ExampleTokenizer:
    options = {"max_source_tokens": 10_000, "max_target_tokens": 50} | options
    return ExampleTokenizer(made(make), encoder_decoder=False, **options)


def split(make: Any, text: str) -> tuple[list[int], str]:
    tokenizer = made(make)
    return split_head(tokenizer, text, lambda part: ids(tokenizer, part))


def ids(tokenizer: Any, text: str) -> list[int]:
    found: list[int] = tokenizer([text], add_special_tokens=False, split_special_tokens=True)["input_ids"][0]
    return found


ALPHABET = " \n\t\r,.:'`▁Ġ019azAZsé́Σ好ﷺ \u200d😀\ufffd</>"
texts = st.text(st.sampled_from(ALPHABET) | st.characters(exclude_categories=["Cs"]))

tasks = st.builds(
    lambda instruction, labels: Task("any", "TC", instruction, tuple(labels), (), ()),
    texts,
    st.lists(texts, min_size=1, max_size=4),
)


@pytest.mark.parametrize("make", [*SPLIT, *WHOLE], ids=lambda make: make.__name__)
@settings(max_examples=60, deadline=None)
@given(text=texts | st.just("fox"), task=st.sampled_from(TASKS) | tasks)
def test_ids_are_those_of_the_whole_prompt(make: Any, text: str, task: Task) -> None:
    encoder = encoder_of(make)
    example = Example("0", text, "World")
    plain = ids(made(make), prompt(task, example))
    assert encoder.prompt_ids(task, example) == [*encoder.begin_ids, *plain]


@pytest.mark.parametrize("make", SPLIT, ids=lambda make: make.__name__)
def test_heads_are_split_before_their_last_word(make: Any) -> None:
    begin, rest = split(make, head(TASKS[0]))
    assert rest.lstrip() == "c9 \n"
    assert len(begin) > 20


@pytest.mark.parametrize("make", WHOLE, ids=lambda make: make.__name__)
def test_heads_stay_whole_unless_a_split_is_known_to_be_exact(make: Any) -> None:
    assert split(make, head(TASKS[0])) == ([], head(TASKS[0]))


def test_a_head_without_two_words_is_not_split() -> None:
    assert split(gpt2, head(TASKS[2])) == ([], head(TASKS[2]))


def test_a_text_can_change_how_an_unknown_pattern_splits_the_head() -> None:
    """Why heads stay whole with unknown patterns."""
    split = made(unknown_pattern).backend_tokenizer.pre_tokenizer
    assert len(split.pre_tokenize_str(head(TASKS[0]) + "fox")) > 20
    assert len(split.pre_tokenize_str(head(TASKS[0]) + "fox;")) == 1


@pytest.mark.parametrize("make", SPLIT, ids=lambda make: make.__name__)
def test_prompts_are_shortened_as_if_tokenized_whole(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With and without a split head, texts are shortened at the same character."""
    examples = [Example(str(i), f"{i} the quick brown fox, jumps over " * i, "World") for i in range(12)]
    limit = len(encoder_of(make).prompt_ids(TASKS[0], examples[0])) + 30
    for mode in ("text", "released"):
        options = {"max_source_tokens": limit, "truncate": mode}
        cut = list(encoder_of(make, **options).encode(TASKS[0], examples))
        with monkeypatch.context() as patch:
            patch.setattr("nlora.data.tokenize.split_head", lambda tokenizer, text, ids: ([], text))
            assert cut == list(encoder_of(make, **options).encode(TASKS[0], examples))
        assert limit - 4 <= max(len(e.prompt_ids) for e in cut) <= limit


def test_the_head_is_not_tokenized_for_every_example(monkeypatch: pytest.MonkeyPatch) -> None:
    task = Task("many", "TC", "Which one?", tuple(f"c{i}" for i in range(300)), (), ())
    encoder = encoder_of(gpt2)
    seen: list[str] = []
    tokenize = encoder._tokenize

    def counting(texts: list[str], **options: Any) -> Any:
        seen.extend(texts)
        return tokenize(texts, **options)

    monkeypatch.setattr(encoder, "_tokenize", counting)
    encoder.encode(task, [Example(str(i), f"text {i}", f"c{i}") for i in range(300)])
    assert sum(map(len, seen)) < 40 * len(head(task)) < 300 * len(head(task))
    assert all(text.endswith(TAIL) for text in seen[-300:])
