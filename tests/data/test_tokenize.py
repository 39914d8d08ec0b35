"""Ids of prompts and answers: equal to the released ones, with complete answers and no silent truncation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nlora.data import cl_benchmark
from nlora.data.columns import shared_prefix
from nlora.data.prompts import TAIL, head, prompt
from nlora.data.task import Example, Task
from nlora.data.tokenize import ExampleTokenizer
from nlora.errors import InputErrors, ModelError

LABELS = ("World", "Sports", "Science or Technology")
TASK = Task("agnews", "TC", "What is the topic?", LABELS, (), ())
TEXT = "The quick brown fox jumps over the lazy dog, and then it runs to the market. "


def make(tokenizer: Any, *, source: int = 512, target: int = 50, **options: Any) -> ExampleTokenizer:
    options = {"encoder_decoder": False} | options
    return ExampleTokenizer(tokenizer, max_source_tokens=source, max_target_tokens=target, **options)


# Released ids


def test_t5_reads_the_released_ids(shared: Path, golden: dict[str, Any], t5: Any) -> None:
    encoder = make(t5, encoder_decoder=True)
    compared = 0
    for name, data in golden["datasets"].items():
        task = cl_benchmark.read(shared / "data" / "CL_Benchmark", name)
        for row in data["examples"]:
            ids = encoder.prompt_ids(task, Example(row["id"], row["sentence"], row["label"]))
            assert len(ids) == row["n_tokens_tiny"], name
            assert ids == t5(row["source_formatted"])["input_ids"]
            compared += 1
    assert compared == 70


def test_t5_batch_example(shared: Path, golden: dict[str, Any], t5: Any) -> None:
    batch = golden["t5_batch_example"]
    task = cl_benchmark.read(shared / "data" / "CL_Benchmark", "CB")
    texts = [source[len(head(task)) : -len(TAIL)] for source in batch["sources"]]
    label_of = {example.sentence: example.label for example in task.train}
    examples = [Example(str(i), text, label_of[text]) for i, text in enumerate(texts)]
    encoded = make(t5, encoder_decoder=True).encode(task, examples)
    assert [len(e.prompt_ids) for e in encoded] == batch["attention_sum"]
    assert encoded[0].prompt_ids[:12] == batch["input_ids_row0_head"]
    # The released batch pads its labels with -100.
    assert [e.answer_ids for e in encoded] == [[i for i in row if i >= 0] for row in batch["labels"]]


@pytest.mark.parametrize("name", ["yelp", "BoolQA", "IMDB"])
def test_released_truncation_gives_the_released_ids(
    shared: Path, golden: dict[str, Any], t5: Any, name: str
) -> None:
    row = golden["overlong_t5"][name]
    task = cl_benchmark.read(shared / "data" / "CL_Benchmark", name)
    encoder = make(t5, encoder_decoder=True, truncate="released")
    ids = encoder.prompt_ids(task, Example(row["id"], row["sentence"], row["label"]))
    assert len(ids) == row["input_ids_len"]
    assert ids[-6:] == row["input_ids_tail"]
    assert ids[:-1] == t5(row["source_fed"])["input_ids"][: len(ids) - 1]


def test_llama_reads_the_released_ids_with_one_bos(golden: dict[str, Any], llama: Any, shared: Path) -> None:
    task = cl_benchmark.read(shared / "data" / "CL_Benchmark", "SST-2")
    released = golden["llama"]["test"]
    encoder = make(llama)
    rows = zip(released["sources"], released["input_ids"], released["attention_mask"], strict=True)
    for source, ids, mask in rows:
        text = source.removeprefix("<s>")[len(head(task)) : -len(TAIL)]
        unpadded = [i for i, on in zip(ids, mask, strict=True) if on]
        assert unpadded[:2] == [1, 1]
        assert encoder.prompt_ids(task, Example("0", text, "Bad")) == unpadded[1:]


# Answers


def test_causal_answers_are_what_follows_in_one_string(llama: Any, bpe: Any) -> None:
    for tokenizer in (llama, bpe):
        encoder = make(tokenizer)
        example = Example("0", "Some text", "Science or Technology")
        whole = tokenizer(prompt(TASK, example) + " Science or Technology")["input_ids"]
        answer = encoder.answer_ids(example.label)
        assert encoder.prompt_ids(TASK, example) + answer == [*whole, tokenizer.eos_token_id]
        assert encoder.label_ids([example.label]) == [answer[:-1]]


def test_an_answer_that_the_tokenizer_merges_with_the_colon() -> None:
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    pieces = [*"\nAnswer: yo", ": ", "</s>"]
    backend = Tokenizer(models.BPE({piece: i for i, piece in enumerate(dict.fromkeys(pieces))}, [(":", " ")]))
    backend.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    encoder = make(tokenizer)
    base = tokenizer(TAIL)["input_ids"]
    assert tokenizer(TAIL + " yo")["input_ids"][: len(base)] != base
    (answer,) = encoder.label_ids(["yo"])
    assert tokenizer.convert_ids_to_tokens(answer) == [" ", "y", "o"]
    assert encoder.answer_ids("yo") == [*answer, tokenizer.eos_token_id]


def test_an_answer_that_the_tokenizer_cannot_represent() -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {TAIL: 0, "</s>": 1, "<unk>": 2}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>")
    with pytest.raises(ModelError, match="cannot represent the answer 'World'"):
        make(tokenizer).answer_ids("World")


def test_labels_that_are_the_same_unknown_token_are_an_error(t5: Any) -> None:
    task = Task("t", "T", "", ("好", "坏", "ok"), (), ())
    with pytest.raises(InputErrors, match="labels '好' and '坏' have the same tokens; rename one"):
        make(t5, encoder_decoder=True).encode(task, [Example("0", "x", "ok")])


@pytest.mark.parametrize("encoder_decoder", [True, False])
def test_long_answers_keep_the_end_token(t5: Any, llama: Any, encoder_decoder: bool) -> None:
    tokenizer = t5 if encoder_decoder else llama
    answer = "Science or Technology, and then some more"
    long = make(tokenizer, encoder_decoder=encoder_decoder).answer_ids(answer)
    short = make(tokenizer, encoder_decoder=encoder_decoder, target=4).answer_ids(answer)
    assert len(long) > 4
    assert short == [*long[:3], tokenizer.eos_token_id]


def test_a_label_that_does_not_fit_is_an_error(llama: Any) -> None:
    length = len(make(llama).answer_ids("Science or Technology"))
    with pytest.raises(
        InputErrors, match=rf"'Science or Technology' takes {length} tokens .* is 5; raise it"
    ):
        make(llama, target=5).encode(TASK, [Example("0", "x", "World")])
    free = Task("notes", "QA", "", None, (), ())
    (encoded,) = make(llama, target=5).encode(free, [Example("0", "x", "Science or Technology")])
    assert len(encoded.answer_ids) == 5


# Truncation


@pytest.mark.parametrize("kind", ["t5", "llama", "bpe"])
@pytest.mark.parametrize("source", [80, 100, 150])
def test_truncation_shortens_only_the_text(kind: str, source: int, request: pytest.FixtureRequest) -> None:
    tokenizer = request.getfixturevalue(kind)
    encoder_decoder = kind == "t5"
    encoder = make(tokenizer, source=source, encoder_decoder=encoder_decoder)
    example = Example("0", TEXT * 20, "World")
    ids = encoder.prompt_ids(TASK, example)
    assert source - 4 <= len(ids) <= source
    whole = make(tokenizer, source=10_000, encoder_decoder=encoder_decoder)
    empty = whole.prompt_ids(TASK, Example("0", "", "World"))
    full = whole.prompt_ids(TASK, example)
    assert ids[: len(empty) // 2] == full[: len(empty) // 2]
    assert ids[-4:] == full[-4:]
    read = tokenizer.decode(ids, skip_special_tokens=True)
    kept = read.split("Answer:")[0].split("Technology")[1].strip()
    assert kept
    assert " ".join((TEXT * 20).split()).startswith(" ".join(kept.split()))


def test_a_prompt_that_just_fits_is_not_shortened_but_one_token_more_is(bpe: Any) -> None:
    example = Example("0", "The quick brown fox jumps.", "World")
    whole = make(bpe).prompt_ids(TASK, example)
    empty = make(bpe).prompt_ids(TASK, Example("0", "", "World"))
    assert make(bpe, source=len(whole)).prompt_ids(TASK, example) == whole
    for source in range(len(empty) + 1, len(whole)):
        assert len(make(bpe, source=source).prompt_ids(TASK, example)) <= source


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(text=st.text(min_size=1, max_size=300), source=st.integers(60, 120))
def test_no_prompt_is_too_long_for_any_text(bpe: Any, llama: Any, text: str, source: int) -> None:
    for tokenizer in (bpe, llama):
        task = Task("t", "T", "", ("a", "b"), (), ())
        encoder = make(tokenizer, source=source)
        ids = encoder.prompt_ids(task, Example("0", text, "a"))
        untouched = make(tokenizer, source=100_000).prompt_ids(task, Example("0", text, "a"))
        assert len(ids) <= source
        if len(untouched) <= source:
            assert ids == untouched
        else:
            tail = tokenizer(TAIL, add_special_tokens=False)["input_ids"][-4:]
            assert ids[-len(tail) :] == untouched[-len(tail) :] == tail


def test_truncation_without_offsets() -> None:
    from transformers import ByT5Tokenizer

    tokenizer = ByT5Tokenizer()  # plain Python, without offsets
    assert not tokenizer.is_fast
    ids = make(tokenizer, source=120, encoder_decoder=True).prompt_ids(TASK, Example("0", "é" * 500, "World"))
    assert ids[-1] == tokenizer.eos_token_id
    # "é" has two bytes, so one token may be left over.
    assert 119 <= len(ids) <= 120
    read = bytes(i - 3 for i in ids[:-1]).decode()
    kept = read.removeprefix(head(TASK)).removesuffix(TAIL)
    assert set(kept) == {"é"}
    assert read == head(TASK) + kept + TAIL


def test_released_truncation_removes_the_end_of_a_causal_prompt(llama: Any) -> None:
    ids = make(llama, source=100, truncate="released").prompt_ids(TASK, Example("0", TEXT * 20, "World"))
    assert len(ids) == 100
    assert ids[0] == llama.bos_token_id
    read = llama.decode(ids, skip_special_tokens=True)
    assert "Answer:" not in read
    assert (head(TASK) + TEXT * 20).startswith(read)


@pytest.mark.parametrize("kind", ["t5", "bpe"])
def test_an_instruction_that_leaves_no_space_for_a_text_is_an_error(
    kind: str, request: pytest.FixtureRequest
) -> None:
    tokenizer = request.getfixturevalue(kind)
    whole = make(tokenizer, encoder_decoder=kind == "t5")
    needed = len(whole.prompt_ids(TASK, Example("0", "", "World")))
    with pytest.raises(InputErrors, match=f"task agnews: .* alone take {needed} tokens") as caught:
        make(tokenizer, source=needed, encoder_decoder=kind == "t5").prompt_ids(
            TASK, Example("0", TEXT, "World")
        )
    assert f"max_source_tokens is {needed}" in str(caught.value)


# Special tokens


def test_one_bos_even_if_the_tokenizer_adds_two_and_an_end(bpe: Any) -> None:
    class Doubling:
        """Adds <s><s> before and </s> after, as some published tokenizers do."""

        is_fast = True
        eos_token_id = 1

        def __call__(self, texts: Any, add_special_tokens: bool = True, **options: Any) -> Any:
            batch = bpe(texts, add_special_tokens=False, **options)
            return {"input_ids": [7, 7, *batch["input_ids"], 1]} if add_special_tokens else batch

    ids = make(Doubling()).prompt_ids(TASK, Example("0", "x", "World"))
    assert ids == [7, *bpe(prompt(TASK, Example("0", "x", "World")))["input_ids"]]


def test_special_tokens_in_a_text_are_text(llama: Any) -> None:
    ids = make(llama).prompt_ids(TASK, Example("0", "<s>struck out</s>", "World"))
    assert ids.count(llama.bos_token_id) == 1
    assert llama.eos_token_id not in ids
    assert "<s>struck out</s>" in llama.decode(ids, skip_special_tokens=True)


def test_a_tokenizer_without_an_end_token_is_refused(bpe: Any) -> None:
    class Endless:
        eos_token_id = None

    with pytest.raises(ModelError, match="no end token"):
        make(Endless())


# Many examples


def test_a_batch_equals_single_examples_in_their_order(bpe: Any) -> None:
    examples = [Example(str(i), TEXT * (1 + i % 9), LABELS[i % 3]) for i in range(1500)]
    encoder = make(bpe, source=128)
    encoded = encoder.encode(TASK, examples)
    assert len(encoded) == 1500
    for i in (0, 8, 1023, 1024, 1499):
        assert encoded[i].prompt_ids == encoder.prompt_ids(TASK, examples[i])
        assert encoded[i].answer_ids == encoder.answer_ids(examples[i].label)
    assert encoder.encode(TASK, []) == []


@given(rows=st.lists(st.lists(st.integers(0, 2), max_size=6), max_size=5))
def test_shared_prefix_is_the_longest_common_one(rows: list[list[int]]) -> None:
    n = shared_prefix(rows)
    if not rows:
        assert n == 0
        return
    assert len({tuple(row[:n]) for row in rows}) == 1
    assert any(len(row) == n for row in rows) or len({row[n] for row in rows}) > 1


def test_prompts_of_a_task_share_their_head(bpe: Any) -> None:
    encoded = make(bpe).encode(TASK, [Example("0", "fox", "World"), Example("1", "dog", "Sports")])
    n = shared_prefix([e.prompt_ids for e in encoded])
    assert bpe.decode(encoded[0].prompt_ids[:n]).startswith(head(TASK).strip())
