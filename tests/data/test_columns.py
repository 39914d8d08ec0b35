"""Examples in columns: the same examples, their lengths, and the beginning that their prompts share."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
from cached_tokens import TASK, keep_everything, make
from hypothesis import given
from hypothesis import strategies as st

from nlora.data.columns import Columns, TokenizedExamples, shared_prefix
from nlora.data.packing import common_tokens
from nlora.data.task import Example, Task, TokenizedExample

some_ids = st.lists(st.integers(0, 2), max_size=6)
examples_of = st.lists(st.builds(TokenizedExample, some_ids, some_ids), min_size=1, max_size=5)


def columns_of(examples: list[TokenizedExample]) -> Columns:
    """Every second example counts as shortened."""
    return Columns.of((example, i % 2 == 1) for i, example in enumerate(examples))


@given(sets=st.lists(examples_of, max_size=3))
def test_columns_hold_what_lists_hold(sets: list[list[TokenizedExample]]) -> None:
    """One set of examples, or several in a row, as with replayed tasks."""
    rows = TokenizedExamples(map(columns_of, sets))
    examples = [example for some in sets for example in some]
    assert rows == examples
    assert len(rows) == len(examples)
    assert [rows[i] for i in range(len(examples))] == examples
    assert rows.prompt_lengths == [len(e.prompt_ids) for e in examples]
    assert rows.lengths == [len(e.prompt_ids) + len(e.answer_ids) for e in examples]
    assert rows.shared_tokens == shared_prefix([e.prompt_ids for e in examples])
    assert rows.largest_id == max((i for e in examples for i in e.prompt_ids + e.answer_ids), default=-1)
    if examples:
        assert common_tokens(rows) == common_tokens(examples)
    assert rows.cut_examples == sum(len(some) // 2 for some in sets)
    again = pickle.loads(pickle.dumps(rows))
    assert again == examples
    assert again.shared_tokens == rows.shared_tokens


# What is cached


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return keep_everything(tmp_path / "cache", monkeypatch)


def test_files_hold_the_common_beginning_once(bpe: Any, folder: Path) -> None:
    task = Task("many", "TC", "Which one?", tuple(f"c{i}" for i in range(200)), (), ())
    examples = [Example(str(i), f"fox {i}", f"c{i % 200}") for i in range(1500)]
    rows = make(bpe, max_source_tokens=2048).encode(task, examples)
    (path,) = folder.iterdir()
    own_tokens = sum(n - rows.shared_tokens for n in rows.lengths)
    assert rows.shared_tokens > 600
    # 4 bytes a token; 24 a row; headers.
    assert path.stat().st_size < 4 * (own_tokens + rows.shared_tokens) + 24 * len(rows) + 4096


@pytest.mark.parametrize("truncate", ["text", "released"])
def test_shortened_prompts_are_counted(bpe: Any, folder: Path, truncate: Any) -> None:
    whole = make(bpe, cached=False)
    texts = ["fox", "dog " * 40, "ox", "dog " * 90]
    lengths = [len(whole.prompt_ids(TASK, Example("0", text, "World"))) for text in texts]
    limit = lengths[1] - 1
    examples = [Example(str(i), text, "World") for i, text in enumerate(texts)]
    for cached in (False, True, True):
        encoder = make(bpe, cached=cached, max_source_tokens=limit, truncate=truncate)
        assert encoder.encode(TASK, examples).cut_examples == 2
    # One that just fits is whole.
    encoder = make(bpe, max_source_tokens=limit + 1, truncate=truncate)
    assert encoder.encode(TASK, examples).cut_examples == 1
