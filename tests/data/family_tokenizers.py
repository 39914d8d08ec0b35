"""Small tokenizers of the model families, made like the published ones and trained on a few sentences."""

from __future__ import annotations

import json
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from nlora.data.prompts import prompt
from nlora.data.task import Example, Task

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
# Words after a space, as in any large text, so that they become tokens with it.
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
    """Trained word by word; an unknown character becomes its bytes."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    words = [line.replace("ü", "").replace("ï", "").replace("\n", " ") for line in CORPUS]
    backend.train_from_iterator(
        words,
        trainers.BpeTrainer(
            vocab_size=700, special_tokens=["<unk>", "<s>", "</s>", *BYTES], show_progress=False
        ),
    )
    # The trainer takes bytes as special tokens only, but in published tokenizers they are not special.
    written = json.loads(backend.to_str())
    written["added_tokens"] = [t for t in written["added_tokens"] if t["content"] not in BYTES]
    backend = Tokenizer.from_str(json.dumps(written))
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*parts, decoders.Strip(" ", 1, 0)])
    return backend


def llama2() -> Any:
    """As in the files of Llama 2: the text is not split into words."""
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
    """No space is added before the text, and decoding keeps the space before an answer."""
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
