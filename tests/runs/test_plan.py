"""What a plan counts: prompts that are shortened, tokens and what prompts share."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers import write_config, write_task
from nlora.cli.check import check
from nlora.config.load import load_config
from nlora.data.columns import shared_prefix
from nlora.errors import InputErrors
from nlora.models.backbone import load_tokenizer
from nlora.runs.plan import make_plan

TinyModel = Callable[[str], Path]


def lengthen(file: Path, *rows: int) -> None:
    lines = file.read_text().splitlines()
    for i in rows:
        row = json.loads(lines[i])
        lines[i] = json.dumps(row | {"sentence": "the fox and the dog " * 60})
    file.write_text("".join(line + "\n" for line in lines))


@pytest.mark.parametrize("truncate", ["text", "released"])
def test_every_shortened_prompt_is_counted(
    tmp_path: Path,
    tiny_model: TinyModel,
    truncate: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Two of four texts to train on are longer than the limit, one of those to test on."""
    task = write_task(tmp_path, "places", ("here", "there"), train=4, test=3)
    config = write_config(tmp_path, tiny_model("llama"), tasks=[task])
    lengthen(tmp_path / "places-train.jsonl", 1, 3)
    lengthen(tmp_path / "places-test.jsonl", 0)
    overrides = ["train.max_source_tokens=150", f"train.truncate={truncate}"]
    (stage,) = make_plan(load_config(config, overrides)).stages
    assert (stage.cut_examples, stage.cut_test_examples) == (2, 1)
    monkeypatch.setenv("COLUMNS", "200")
    check(str(config), overrides)
    assert " 2+1 " in capsys.readouterr().out
    (stage,) = make_plan(load_config(str(config), ["train.max_source_tokens=4000"])).stages
    assert (stage.cut_examples, stage.cut_test_examples) == (0, 0)


@pytest.mark.parametrize("method", ["nlora", "replay", "mtl"])
@pytest.mark.parametrize("model", ["llama", "t5"])
def test_tokens_and_what_is_shared_are_those_of_the_examples(
    tmp_path: Path, tiny_model: TinyModel, method: str, model: str
) -> None:
    plan = make_plan(load_config(str(write_config(tmp_path, tiny_model(model), method=method)), []))
    for stage, rows in zip(plan.stages, plan.encoded, strict=True):
        examples = list(rows)
        assert stage.train_examples == len(examples)
        if not examples:
            continue
        tokens = sum(len(e.prompt_ids) + len(e.answer_ids) for e in examples)
        assert stage.prompt_tokens == tokens / len(examples)
        shared = shared_prefix([e.prompt_ids for e in examples])
        assert stage.shared_tokens == (0 if model == "t5" else shared)


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_token_that_the_model_has_no_row_for_is_found_before_training(
    tmp_path: Path, tiny_model: TinyModel, split: str
) -> None:
    """It was added to the tokenizer as a word; the embedding was not resized."""
    shutil.copytree(tiny_model("llama"), tmp_path / "a")
    tokenizer = load_tokenizer(str(tmp_path / "a"))
    tokenizer.add_tokens(["gnu"])
    tokenizer.save_pretrained(tmp_path / "a")
    config = write_config(tmp_path, tmp_path / "a")
    make_plan(load_config(str(config)))
    file = tmp_path / f"animals-{split}.jsonl"
    file.write_text(file.read_text() + json.dumps({"sentence": "a gnu ox", "label": "ox"}) + "\n")
    with pytest.raises(
        InputErrors, match=r"task animals: .* contains 'gnu', token 400 .* ends at 399; remove it"
    ):
        make_plan(load_config(str(config)))
