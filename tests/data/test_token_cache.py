"""Cached tokens are exactly those of tokenizing, are found by later runs, and are never another set's."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cached_tokens import EXAMPLES, FEW, TASK, files, keep_everything, lock_up, make
from torch.utils.data import DataLoader

from nlora.data import prompts, token_cache
from nlora.data.columns import shared_prefix
from nlora.data.task import Example, Task
from nlora.data.tokenize import ExampleTokenizer
from nlora.errors import InputErrors


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return keep_everything(tmp_path / "cache", monkeypatch)


# The same ids


@pytest.mark.parametrize("kind", ["bpe", "llama", "t5"])
def test_ids_are_those_of_tokenizing(
    kind: str, folder: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = request.getfixturevalue(kind)
    options = {"encoder_decoder": kind == "t5"}
    expected = make(tokenizer, cached=False, **options).encode(TASK, EXAMPLES)
    assert max(len(e.prompt_ids) for e in expected) == 128  # some are shortened
    first = make(tokenizer, **options).encode(TASK, EXAMPLES)
    assert list(first) == expected
    later = make(tokenizer, **options)
    lock_up(later, monkeypatch)
    assert list(later.encode(TASK, EXAMPLES)) == expected
    assert len(files(folder)) == 1


def test_rows_are_a_sequence(bpe: Any) -> None:
    expected = list(make(bpe, cached=False).encode(TASK, EXAMPLES))
    make(bpe).encode(TASK, EXAMPLES)
    rows = make(bpe).encode(TASK, EXAMPLES)
    assert len(rows) == 1100
    for i in (0, 1, 1023, 1024, 1099, -1, -1100):
        assert rows[i] == expected[i]
        assert isinstance(rows[i].prompt_ids[0], int)
    for part in (slice(1020, 1030), slice(None, None, -100), slice(5, 5), slice(1090, 9999)):
        assert rows[part] == expected[part]
    for i in (1100, -1101):
        with pytest.raises(IndexError):
            rows[i]
    rows[0].prompt_ids.append(-1)  # each access gives a new list
    assert list(reversed(rows)) == expected[::-1]
    prompts_ids = [row.prompt_ids for row in rows]
    assert shared_prefix(prompts_ids) == shared_prefix([e.prompt_ids for e in expected]) > 20
    assert list(pickle.loads(pickle.dumps(rows))) == expected


def test_rows_work_as_the_data_set_of_a_loader(bpe: Any) -> None:
    expected = make(bpe, cached=False).encode(TASK, FEW)
    rows: Any = make(bpe).encode(TASK, FEW)
    loader: Any = DataLoader(rows, batch_size=16, shuffle=True, collate_fn=list)
    seen = [row for batch in loader for row in batch]
    assert sorted(e.prompt_ids for e in seen) == sorted(e.prompt_ids for e in expected)
    assert [len(batch) for batch in loader] == [16, 16, 8]


def test_no_examples(bpe: Any, folder: Path) -> None:
    assert list(make(bpe).encode(TASK, [])) == []
    assert not folder.exists()


# What the key depends on

CHANGES: dict[str, tuple[dict[str, Any], Task, Sequence[Example]]] = {
    "max_source_tokens": ({"max_source_tokens": 127}, TASK, FEW),
    "max_target_tokens": ({"max_target_tokens": 49}, TASK, FEW),
    "truncate": ({"truncate": "released"}, TASK, FEW),
    "encoder_decoder": ({"encoder_decoder": True}, TASK, FEW),
    "name": ({}, replace(TASK, name="other"), FEW),
    "type": ({}, replace(TASK, type="SC"), FEW),
    "instruction": ({}, replace(TASK, instruction="Which topic?"), FEW),
    "labels": ({}, replace(TASK, labels=("Sports", "World")), FEW),
    "options": ({}, replace(TASK, options_in_prompt=False), FEW),
    "order": ({}, TASK, FEW[::-1]),
    "fewer": ({}, TASK, FEW[:-1]),
    "a text": ({}, TASK, [*FEW[:-1], replace(FEW[-1], sentence=FEW[-1].sentence + ".")]),
    "a label": ({}, TASK, [*FEW[:-1], replace(FEW[-1], label="World")]),
    "a border": ({}, TASK, [*FEW[:-1], replace(FEW[-1], sentence=FEW[-1].sentence + "S", label="ports")]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_everything_that_changes_ids_gives_another_file(bpe: Any, folder: Path, change: str) -> None:
    options, task, examples = CHANGES[change]
    make(bpe).encode(TASK, FEW)
    assert list(make(bpe, **options).encode(task, examples)) == make(bpe, cached=False, **options).encode(
        task, examples
    )
    assert len(files(folder)) == 2


def test_example_ids_are_not_part_of_the_key(bpe: Any, folder: Path) -> None:
    make(bpe).encode(TASK, FEW)
    make(bpe).encode(replace(TASK, train=tuple(FEW)), [replace(e, id=f"x{e.id}") for e in FEW])
    assert len(files(folder)) == 1


def test_every_change_of_the_tokenizer_gives_another_file(tiny_tokenizer: Any, folder: Path) -> None:
    from tokenizers import normalizers

    def lower() -> Any:
        made = tiny_tokenizer(False)
        made.backend_tokenizer.normalizer = normalizers.Lowercase()
        return made

    def longer() -> Any:
        made = tiny_tokenizer(False)
        made.add_tokens(["quick brown"])
        return made

    def other_end() -> Any:
        made = tiny_tokenizer(False)
        made.eos_token = "<pad>"
        return made

    makers = [lambda: tiny_tokenizer(False), lambda: tiny_tokenizer(True), lower, longer, other_end]
    for number, maker in enumerate(makers, start=1):
        expected = make(maker(), cached=False).encode(TASK, FEW)
        assert list(make(maker()).encode(TASK, FEW)) == expected
        assert list(make(maker()).encode(TASK, FEW)) == expected
        assert len(files(folder)) == number


@pytest.mark.parametrize("changed", ["version", "format", "tail"])
def test_other_versions_do_not_share_files(
    bpe: Any, folder: Path, changed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(bpe).encode(TASK, FEW)
    if changed == "version":
        monkeypatch.setattr(token_cache, "version", lambda package: f"{package} of tomorrow")
    elif changed == "format":
        monkeypatch.setattr(token_cache, "FORMAT", 99)
    else:
        monkeypatch.setattr(prompts, "TAIL", "\nReply:")
    make(bpe).encode(TASK, FEW)
    assert len(files(folder)) == 2


def test_padding_does_not_change_the_key(bpe: Any, folder: Path) -> None:
    make(bpe).encode(TASK, FEW)
    bpe(["a", "a b c"], padding=True, truncation=True, max_length=9)
    make(bpe).encode(TASK, FEW)
    assert len(files(folder)) == 1


# What is not cached


def test_tokenizers_that_may_change_unnoticed_are_not_cached(bpe: Any, folder: Path) -> None:
    from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

    class FromTheModelsOwnCode(PreTrainedTokenizerFast):  # type: ignore[misc, unused-ignore]
        pass

    own = FromTheModelsOwnCode(tokenizer_object=bpe.backend_tokenizer, eos_token="</s>")
    for tokenizer in (own, ByT5Tokenizer()):
        encoder = make(tokenizer, max_source_tokens=400)
        assert encoder.encode(TASK, FEW[:3]) == make(tokenizer, cached=False, max_source_tokens=400).encode(
            TASK, FEW[:3]
        )
    assert not folder.exists()


def test_a_tokenizer_with_a_part_in_python_is_not_cached(tiny_tokenizer: Any, folder: Path) -> None:
    from tokenizers import pre_tokenizers

    class Spaces:
        def pre_tokenize(self, text: Any) -> None:
            text.split(lambda i, s: [s])

    tokenizer = tiny_tokenizer(False)
    expected = make(tokenizer, cached=False).encode(TASK, FEW)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.PreTokenizer.custom(Spaces()), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    assert make(tokenizer).encode(TASK, FEW) == expected
    assert not folder.exists()


def test_small_sets_are_not_cached(bpe: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    head_characters = len(prompts.head(TASK))
    characters = sum(head_characters + len(e.sentence) for e in FEW)
    monkeypatch.setattr(token_cache, "LEAST_CHARACTERS", characters + 1)
    make(bpe).encode(TASK, FEW)
    assert not folder.exists()
    monkeypatch.setattr(token_cache, "LEAST_CHARACTERS", characters)
    make(bpe).encode(TASK, FEW)
    assert len(files(folder)) == 1


def test_mistakes_are_reported_with_and_without_a_file(bpe: Any, folder: Path) -> None:
    """Instructions and labels that do not fit: the same message each time, and no file."""
    needed = len(make(bpe, cached=False).prompt_ids(TASK, Example("0", "", "World")))
    for options in ({"max_source_tokens": needed}, {"max_target_tokens": 1}):
        said = []
        for cached in (False, True, True):
            with pytest.raises(InputErrors) as caught:
                make(bpe, cached=cached, **options).encode(TASK, EXAMPLES)
            said.append(str(caught.value))
        assert said[0] == said[1] == said[2]
        assert not folder.exists()


# In a run


def test_plans_and_scores_find_the_tokens_of_an_earlier_run(
    tiny_model: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from helpers import write_config
    from nlora.config.load import load_config
    from nlora.runs.plan import make_plan

    config = write_config(tmp_path, tiny_model("llama"))
    plan = make_plan(load_config(str(config), []))
    for task in plan.tasks:
        plan.encoder.encode(task, task.test)  # as the evaluator does
    assert len(files(folder)) == 4

    lock_up(ExampleTokenizer, monkeypatch)
    again = make_plan(load_config(str(config), ["seed=4", "method=inclora", f"output_dir={tmp_path}/b"]))
    assert [list(rows) for rows in again.encoded] == [list(rows) for rows in plan.encoded]
    assert again.stages[0].prompt_tokens == plan.stages[0].prompt_tokens
    for task in again.tasks:
        assert len(again.encoder.encode(task, task.test)) == len(task.test)
    with pytest.raises(AssertionError, match="tokenized again"):
        make_plan(load_config(str(config), ["train.max_source_tokens=300"]))
