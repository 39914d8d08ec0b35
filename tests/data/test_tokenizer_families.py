"""Label words and the end token in the tokenizers of the families, and the space before an answer.

The tokenizers are trained here on a few words, with the parts of the real ones: GPT-2 and Llama 3 (byte-level BPE that
splits differently before merging), Llama 2, Mistral and Gemma (BPE on sentencepiece's "▁", with bytes for what it does
not know), T5 (unigram on "▁").
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from nlora.data.collate import Collator
from nlora.data.prompts import prompt
from nlora.data.task import Example, Task
from nlora.data.tokenize import ExampleTokenizer
from nlora.evaluation.label_scoring import LabelTree

LABELS = (
    "World",
    "Sports",
    "Science or Technology",
    "very negative",
    "negative",
    "1",
    "10",
    "A",
    "ünï",
    "no-go!",
)
TASK = Task("agnews", "TC", "What is the topic? Choose one from the option.", LABELS, (), ())
EXAMPLES = [
    Example("0", "The quick brown fox jumps over the lazy dog.", "World"),
    Example("1", "Text that ends in a colon:", "very negative"),
    Example("2", "", "10"),
]
# Words that follow a space, as in any large text, so that they become pieces with it.
CORPUS = [f"{prompt(TASK, EXAMPLES[0])} {label} and {label}" for label in LABELS for _ in range(4)]
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BYTES = [f"<0x{i:02X}>" for i in range(256)]


def byte_level(specials: list[str], before: list[Any]) -> Tokenizer:
    backend = Tokenizer(models.BPE())
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not before)
    backend.pre_tokenizer = pre_tokenizers.Sequence([*before, last])
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=500, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
        ),
    )
    return backend


def gpt2() -> Any:
    return PreTrainedTokenizerFast(
        tokenizer_object=byte_level(["<|endoftext|>"], []),
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
    )


def llama3() -> Any:
    split = pre_tokenizers.Split(Regex(LLAMA_3), behavior="isolated")
    backend = byte_level(["<|begin_of_text|>", "<|eot_id|>"], [split])
    backend.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|begin_of_text|>",
        eos_token="<|eot_id|>",
        pad_token="<|eot_id|>",
    )


def sentencepiece_bpe() -> Tokenizer:
    """Pieces trained word by word; an unknown character is written as its bytes."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    words = [line.replace("ü", "").replace("ï", "").replace("\n", " ") for line in CORPUS]
    backend.train_from_iterator(
        words,
        trainers.BpeTrainer(
            vocab_size=700, special_tokens=["<unk>", "<s>", "</s>", *BYTES], show_progress=False
        ),
    )
    written = json.loads(
        backend.to_str()
    )  # the trainer knows bytes as special tokens only; in real ones they are not
    written["added_tokens"] = [t for t in written["added_tokens"] if t["content"] not in BYTES]
    backend = Tokenizer.from_str(json.dumps(written))
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*parts, decoders.Strip(" ", 1, 0)])
    return backend


def llama2() -> Any:
    """As in the files of Llama 2: no words are split, the whole text is one run of pieces."""
    backend = sentencepiece_bpe()
    backend.pre_tokenizer = None
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )


def mistral() -> Any:
    backend = sentencepiece_bpe()
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )


def gemma() -> Any:
    """No space is put before the text; what decodes keeps the one before an answer."""
    backend = sentencepiece_bpe()
    backend.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous")
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<unk>"
    )


def t5() -> Any:
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    backend.decoder = decoders.Metaspace(prepend_scheme="always")
    backend.train_from_iterator(
        CORPUS,
        trainers.UnigramTrainer(
            vocab_size=150, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
        ),
    )
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", eos_token="</s>", pad_token="<pad>"
    )


CAUSAL = [gpt2, llama3, llama2, mistral, gemma]
causal = pytest.mark.parametrize("make", CAUSAL, ids=lambda make: make.__name__)
every = pytest.mark.parametrize("make", [*CAUSAL, t5], ids=lambda make: make.__name__)


def encoder_of(tokenizer: Any, *, encoder_decoder: bool = False) -> ExampleTokenizer:
    return ExampleTokenizer(
        tokenizer, encoder_decoder=encoder_decoder, max_source_tokens=512, max_target_tokens=50
    )


@causal
def test_prompt_and_answer_are_the_tokens_of_one_text(make: Callable[[], Any]) -> None:
    """What the model met in pretraining, where nobody cut the text before the answer."""
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
    assert tokenizer.convert_ids_to_tokens(world) == [f"{mark}World"]  # the piece that texts are made of


@every
def test_the_answer_reads_as_the_label_when_it_was_generated(make: Callable[[], Any]) -> None:
    tokenizer = make()
    encoder = encoder_of(tokenizer, encoder_decoder=make is t5)
    answers = [encoder.answer_ids(label) for label in LABELS]
    texts = tokenizer.batch_decode(answers, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert [text.strip() for text in texts] == list(LABELS)


@every
def test_one_end_token_after_the_answer_and_none_that_stops_the_prompt(make: Callable[[], Any]) -> None:
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
def test_the_end_token_is_learned_even_where_it_also_pads(make: Callable[[], Any]) -> None:
    """Masking padding by its id would teach such a model never to stop."""
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
