"""A packed batch holds every example's tokens once, in an order from which each can be read back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nlora.data.encode import Encoded
from nlora.data.pack import pack

TOKENS = st.lists(st.integers(0, 9), min_size=1, max_size=6)


def make(shared: list[int], rests: list[tuple[list[int], list[int]]]) -> list[Encoded]:
    return [Encoded([*shared, *rest], answer) for rest, answer in rests]


@given(st.lists(st.integers(0, 9), max_size=5), st.lists(st.tuples(TOKENS, TOKENS), min_size=1, max_size=5))
def test_every_example_can_be_read_back(shared: list[int], rests: list[tuple[list[int], list[int]]]) -> None:
    examples = make(shared, rests)
    batch = pack(examples)
    ids, places = batch["input_ids"][0].tolist(), batch["position_ids"][0].tolist()
    prefix = len(ids) - len(batch["back_at"])
    rows = batch["rows_at"].tolist()
    flat = [place for row in rows for place in row]
    assert [flat[back] for back in batch["back_at"].tolist()] == list(range(prefix, len(ids)))
    predicted = iter(zip(batch["predict_at"].tolist(), batch["labels"][0, 1:].tolist(), strict=True))
    for row, example in zip(rows, examples, strict=True):
        whole = [*example.prompt_ids, *example.answer_ids]
        mine = row[: len(whole) - prefix]
        assert ids[:prefix] + [ids[place] for place in mine] == whole
        assert [places[place] for place in mine] == list(range(prefix, len(whole)))
        assert set(row[len(mine) :]) <= {mine[-1]}
        # The logits at a token predict the one after it.
        for at, label in [next(predicted) for _ in example.answer_ids]:
            place = mine.index(at)
            assert ids[mine[place + 1]] == label
            assert place + 1 >= len(mine) - len(example.answer_ids)
    assert next(predicted, None) is None


@pytest.mark.parametrize("count", [1, 2, 5])
def test_what_all_prompts_begin_with_stands_once(count: int) -> None:
    batch = pack(make([7, 7, 7, 7], [([row], [8, 9]) for row in range(count)]))
    assert batch["input_ids"].shape == (1, 4 + 3 * count)


def test_the_last_prompt_token_stays_in_its_row() -> None:
    """Its logits predict the first answer token; prompts that are the same share all but that one."""
    batch = pack([Encoded([1, 2, 3], [4]), Encoded([1, 2, 3], [5])])
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 3, 5]]
    assert batch["predict_at"].tolist() == [2, 4]
    assert batch["rows_at"].tolist() == [[2, 3], [4, 5]]
