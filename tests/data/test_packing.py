"""A packed batch has every example's tokens, and each example can be reconstructed from it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nlora.data.collate import IGNORED
from nlora.data.columns import TokenizedExamples
from nlora.data.packing import beginnings_of, pack, pack_rests
from nlora.data.task import TokenizedExample

TOKENS = st.lists(st.integers(0, 9), min_size=1, max_size=6)


def make(shared: list[int], rests: list[tuple[list[int], list[int]]]) -> list[TokenizedExample]:
    return [TokenizedExample([*shared, *rest], answer) for rest, answer in rests]


def check(examples: list[TokenizedExample], batch: dict[str, Any]) -> None:
    """Each example's tokens, positions and answers are found in its group."""
    ids, places = batch["input_ids"][0].tolist(), batch["position_ids"][0].tolist()
    predicted: dict[int, list[int]] = {}
    members: list[int] = []
    start = 0
    for group in batch["groups"]:
        rows, keys, backs = (group[name].tolist() for name in ("rows_at", "keys_at", "back_at"))
        prefix = len(keys[0]) - len(rows[0])
        flat = [place for row in rows for place in row]
        assert [flat[back] for back in backs] == list(range(prefix, prefix + len(backs)))
        for i, row, seen in zip(group["examples"].tolist(), rows, keys, strict=True):
            example = examples[i]
            whole = [*example.prompt_ids, *example.answer_ids[:-1]]
            mine = seen[: len(whole)]
            assert [ids[start + place] for place in mine] == whole
            assert [places[start + place] for place in mine] == list(range(len(whole)))
            assert seen[prefix:] == row
            assert set(seen[len(whole) :]) <= {mine[-1]}
            # The logits of a token predict the next one.
            predicted[i] = [start + place for place in mine[len(example.prompt_ids) - 1 :]]
            members.append(i)
        start += prefix + len(backs)
    assert start == len(ids)
    assert sorted(members) == list(range(len(examples)))
    assert batch["predict_at"].tolist() == [place for i in range(len(examples)) for place in predicted[i]]
    assert batch["labels"][0, 1:].tolist() == [label for example in examples for label in example.answer_ids]


@given(st.lists(st.integers(0, 9), max_size=5), st.lists(st.tuples(TOKENS, TOKENS), min_size=1, max_size=5))
def test_every_example_can_be_reconstructed(
    shared: list[int], rests: list[tuple[list[int], list[int]]]
) -> None:
    examples = make(shared, rests)
    batch = pack(examples)
    assert len(batch["groups"]) == 1
    check(examples, batch)


BEGINNINGS = st.lists(st.lists(st.integers(0, 2), max_size=6), max_size=3)
CHOICES = st.lists(st.tuples(st.integers(0, 3), TOKENS, TOKENS), min_size=1, max_size=7)


@given(BEGINNINGS, CHOICES)
def test_so_can_examples_of_several_beginnings_in_no_more_tokens(
    beginnings: list[list[int]], choices: list[tuple[int, list[int], list[int]]]
) -> None:
    several = [[], *beginnings]
    examples = [TokenizedExample([*several[i % len(several)], *rest], answer) for i, rest, answer in choices]
    for shared in (0, None):
        mixed, one = pack(examples, shared, beginnings), pack(examples, shared)
        check(examples, mixed)
        assert mixed["input_ids"].shape[1] <= one["input_ids"].shape[1]
    assert torch.equal(mixed["labels"], one["labels"])
    for i, number in enumerate(mixed["beginnings"].tolist()):
        fitting = [b for b in beginnings if examples[i].prompt_ids[:-1][: len(b)] == b]
        assert (beginnings[number] if number >= 0 else []) == max(fitting, key=len, default=[])


def test_a_beginning_runs_once_if_that_saves_tokens() -> None:
    first, second = [7, 7, 7, 7], [7, 8, 8, 8, 8]
    examples = [TokenizedExample([*(first if i % 2 else second), i, 20 + i], [9, 9]) for i in range(5)]
    batch = pack(examples, beginnings=[first, second])
    assert [group["examples"].tolist() for group in batch["groups"]] == [[0, 2, 4], [1, 3]]
    assert batch["input_ids"].shape[1] == len(second) + len(first) + 5 * 3
    # Of one example, it is among its own tokens, which share what all begin with.
    batch = pack([examples[i] for i in (0, 2, 4, 1)], beginnings=[first, second])
    assert [group["examples"].tolist() for group in batch["groups"]] == [[3], [0, 1, 2]]
    alone = [examples[1], examples[0], TokenizedExample([7, 9, 9], [9])]
    batch = pack(alone, beginnings=[first, second])
    assert [group["examples"].tolist() for group in batch["groups"]] == [[0, 1, 2]]
    assert batch["beginnings"].tolist() == [0, 1, -1]
    assert batch["input_ids"].shape[1] == 1 + (3 + 3) + (4 + 3) + 2


def test_the_beginnings_are_those_of_the_parts() -> None:
    parts = [make([7, 7, 7], [([i], [1]) for i in range(3)]), make([7, 8], [([i], [1]) for i in range(3)])]
    once = make([6, 6], [([1], [1])])
    columns = [part for some in [*parts, once, parts[0]] for part in TokenizedExamples.of(some).parts]
    assert beginnings_of(TokenizedExamples(columns)) == [[7, 7, 7], [7, 8]]
    assert beginnings_of(TokenizedExamples(columns[:1])) == []
    assert beginnings_of(parts[0]) == []


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
