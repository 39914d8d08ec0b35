"""A packed batch has every example's tokens, and each example can be reconstructed from it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nlora.data.collate import IGNORED
from nlora.data.packing import pack, pack_rests
from nlora.data.task import TokenizedExample

TOKENS = st.lists(st.integers(0, 9), min_size=1, max_size=6)


def make(shared: list[int], rests: list[tuple[list[int], list[int]]]) -> list[TokenizedExample]:
    return [TokenizedExample([*shared, *rest], answer) for rest, answer in rests]


@given(st.lists(st.integers(0, 9), max_size=5), st.lists(st.tuples(TOKENS, TOKENS), min_size=1, max_size=5))
def test_every_example_can_be_reconstructed(
    shared: list[int], rests: list[tuple[list[int], list[int]]]
) -> None:
    examples = make(shared, rests)
    batch = pack(examples)
    ids, places = batch["input_ids"][0].tolist(), batch["position_ids"][0].tolist()
    (group,) = batch["groups"]
    prefix = len(ids) - len(group["back_at"])
    rows = group["rows_at"].tolist()
    flat = [place for row in rows for place in row]
    assert [flat[back] for back in group["back_at"].tolist()] == list(range(prefix, len(ids)))
    predicted = iter(zip(batch["predict_at"].tolist(), batch["labels"][0, 1:].tolist(), strict=True))
    for row, example in zip(rows, examples, strict=True):
        whole = [*example.prompt_ids, *example.answer_ids[:-1]]
        mine = row[: len(whole) - prefix]
        assert ids[:prefix] + [ids[place] for place in mine] == whole
        assert [places[place] for place in mine] == list(range(prefix, len(whole)))
        assert set(row[len(mine) :]) <= {mine[-1]}
        # The logits of a token predict the next one.
        first = len(example.prompt_ids) - prefix - 1
        for i, label in enumerate(example.answer_ids):
            assert next(predicted) == (mine[first + i], label)
    assert next(predicted, None) is None


@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_common_beginning_is_there_once(count: int) -> None:
    batch = pack(make([7, 7, 7, 7], [([row], [8, 9]) for row in range(count)]))
    assert batch["input_ids"].shape == (1, 4 + 2 * count)


def test_the_last_prompt_token_stays_in_its_row() -> None:
    """Its logits predict the first answer token, so equal prompts share all tokens but the last."""
    batch = pack([TokenizedExample([1, 2, 3], [4]), TokenizedExample([1, 2, 3], [5])])
    assert batch["input_ids"].tolist() == [[1, 2, 3, 3]]
    assert batch["predict_at"].tolist() == [2, 3]
    assert batch["groups"][0]["rows_at"].tolist() == [[2], [3]]


def test_prompts_without_answers_predict_their_next_token() -> None:
    prompts = [TokenizedExample([1, 2, 3, 4], []), TokenizedExample([1, 2, 5], [])]
    whole, rests = (pack_rests(prompts, 2, with_beginning=begins) for begins in (True, False))
    assert whole["input_ids"].tolist() == [[1, 2, 3, 4, 5]]
    assert whole["predict_at"].tolist() == [3, 4]
    assert rests["input_ids"].tolist() == [[3, 4, 5]]
    assert rests["position_ids"].tolist() == [[2, 3, 2]]
    assert rests["predict_at"].tolist() == [1, 2]
    assert rests["groups"][0]["rows_at"].tolist() == [[0, 1], [2, 2]]
    assert rests["groups"][0]["keys_at"].tolist() == [[0, 1, 2, 3], [0, 1, 4, 4]]
    assert rests["labels"].tolist() == [[IGNORED]]
