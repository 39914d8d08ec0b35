"""Label words, the space before an answer, and the end token, in the tokenizers of the model families.

The tokenizers are built like the published ones, and trained on a few words: GPT-2 and Llama 3 (byte-level BPE with
different pre-tokenizers), Llama 2, Mistral and Gemma (BPE with sentencepiece's "▁" and byte fallback), and T5 (unigram
with "▁").
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from family_tokenizers import EXAMPLES, LABELS, TASK, gemma, gpt2, llama2, llama3, mistral, t5

from nlora.data.collate import Collator
from nlora.data.prompts import prompt
from nlora.data.tokenize import ExampleTokenizer
from nlora.evaluation.label_scoring import LabelTree

CAUSAL = [gpt2, llama3, llama2, mistral, gemma]
causal = pytest.mark.parametrize("make", CAUSAL, ids=lambda make: make.__name__)
every = pytest.mark.parametrize("make", [*CAUSAL, t5], ids=lambda make: make.__name__)


def encoder_of(tokenizer: Any, *, encoder_decoder: bool = False) -> ExampleTokenizer:
    return ExampleTokenizer(
        tokenizer, encoder_decoder=encoder_decoder, max_source_tokens=512, max_target_tokens=50
    )


@causal
def test_prompt_and_answer_are_the_tokens_of_one_text(make: Callable[[], Any]) -> None:
    """As in pretraining, where texts are not split before the answer."""
    tokenizer = make()
    encoder = encoder_of(tokenizer)
    for label in LABELS:
        for example in EXAMPLES:
            whole = tokenizer(f"{prompt(TASK, example)} {label}")["input_ids"]
            ids = [*encoder.prompt_ids(TASK, example), *encoder.answer_ids(label)]
            assert ids == [*whole, tokenizer.eos_token_id], (label, example.id)


@causal
def test_the_space_belongs_to_the_answer_and_only_once(make: Callable[[], Any]) -> None:
    tokenizer = make()
    mark = "Ġ" if make in (gpt2, llama3) else "▁"
    for label, ids in zip(LABELS, encoder_of(tokenizer).label_ids(LABELS), strict=True):
        pieces = tokenizer.convert_ids_to_tokens(ids)
        assert pieces[0].startswith(mark), (label, pieces)
        assert not pieces[0].startswith(mark * 2), (label, pieces)
        assert "".join(pieces).count(mark) == 1 + label.count(" "), (label, pieces)
    (world,) = encoder_of(tokenizer).label_ids(["World"])
    assert tokenizer.convert_ids_to_tokens(world) == [f"{mark}World"]  # the token that texts consist of


@every
def test_a_generated_answer_decodes_to_the_label(make: Callable[[], Any]) -> None:
    tokenizer = make()
    encoder = encoder_of(tokenizer, encoder_decoder=make is t5)
    answers = [encoder.answer_ids(label) for label in LABELS]
    texts = tokenizer.batch_decode(answers, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert [text.strip() for text in texts] == list(LABELS)


@every
def test_the_answer_has_one_end_token_and_a_causal_prompt_none(make: Callable[[], Any]) -> None:
    tokenizer = make()
    encoder = encoder_of(tokenizer, encoder_decoder=make is t5)
    end = tokenizer.eos_token_id
    assert encoder.end_id == end
    for example in EXAMPLES:
        (encoded,) = encoder.encode(TASK, [example])
        assert encoded.answer_ids.count(end) == 1
        assert encoded.answer_ids[-1] == end
        assert encoded.prompt_ids.count(end) == (1 if make is t5 else 0)
    if make in (llama3, llama2, mistral, gemma):
        assert encoded.prompt_ids.count(tokenizer.bos_token_id) == 1
        assert encoded.prompt_ids[0] == tokenizer.bos_token_id


@every
def test_the_end_token_is_learned_even_if_it_is_the_padding_token(make: Callable[[], Any]) -> None:
    """If padding were masked by its id, the model would never learn to stop."""
    tokenizer = make()
    encoder = encoder_of(tokenizer, encoder_decoder=make is t5)
    encoded = encoder.encode(TASK, EXAMPLES)
    batch = Collator(tokenizer.pad_token_id, make is t5)(encoded)
    assert torch.equal((batch["labels"] == encoder.end_id).sum(dim=1), torch.ones(3, dtype=torch.long))
    kept = [[i for i in row if i != -100] for row in batch["labels"].tolist()]
    assert kept == [e.answer_ids for e in encoded]


@every
def test_labels_are_told_apart_by_their_tokens(make: Callable[[], Any]) -> None:
    tokenizer = make()
    ids = encoder_of(tokenizer, encoder_decoder=make is t5).label_ids(LABELS)
    assert len(LabelTree.build(ids, tokenizer.eos_token_id).labels) == len(LABELS)


def test_t5_answers_with_the_tokens_of_the_label_alone() -> None:
    tokenizer = t5()
    encoder = encoder_of(tokenizer, encoder_decoder=True)
    for label in LABELS:
        assert encoder.answer_ids(label) == tokenizer(label)["input_ids"]
        assert tokenizer.convert_ids_to_tokens(encoder.answer_ids(label))[0].startswith("▁")
