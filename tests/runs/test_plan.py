"""What a plan counts: prompts that are shortened, tokens and what prompts share."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers import write_config, write_task
from nlora.cli.check import check
from nlora.config.load import load_config
from nlora.data.columns import TokenizedExamples, shared_prefix
from nlora.data.packing import beginnings_of, pack
from nlora.data.task import TokenizedExample
from nlora.errors import InputErrors
from nlora.models.backbone import load_tokenizer
from nlora.runs.plan import make_plan
from nlora.runs.stage_plan import _shared_in_batch

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


def test_the_time_of_a_batch_of_several_tasks_is_that_of_its_tokens() -> None:
    """As `pack` makes it of two tasks' examples in their proportion."""
    tasks = [[5, 6, 7, 8, 9, 10], [5, 16, 17, 18, 19, 20]]
    parts = [
        [TokenizedExample([*beginning, 30 + i, 40], [1]) for i in range(n)]
        for beginning, n in zip(tasks, (5, 3), strict=True)
    ]
    rows = TokenizedExamples(TokenizedExamples.of(part).parts[0] for part in parts)
    packed = pack(list(rows), beginnings=beginnings_of(rows))["input_ids"].numel()
    shared = _shared_in_batch(rows, 8)
    assert shared + 8 * (8 - shared) == pytest.approx(packed, abs=1)  # the token of both is counted once more
    assert _shared_in_batch(TokenizedExamples(rows.parts[:1]), 8) == 6


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


@pytest.mark.parametrize(
    ("method", "option", "value"),
    [("l2p", "pool", 20), ("l2p", "length", 3), ("gorp", "side", "input"), ("disjoint", "seed", 1)],
)
def test_options_that_all_stages_share_cannot_differ(
    method: str, option: str, value: Any, tmp_path: Path, tiny_model: Callable[[str], Path]
) -> None:
    for stages, problems in ((["animals"], 1), (["colors", "animals"], 0)):
        own = {task: {"method": {option: value}} for task in stages}
        loaded = load_config(write_config(tmp_path, tiny_model("llama"), method=method, stages=own))
        if not problems:
            make_plan(loaded)
            continue
        with pytest.raises(InputErrors, match=f"{method} needs the same {option} at all stages") as caught:
            make_plan(loaded)
        (problem,) = caught.value.problems
        assert problem.key == ("stages", "animals", "method", option)


def test_the_tracker_of_a_single_task_has_to_be_installed(
    tmp_path: Path, tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As that of all tasks, which is reported once. A tracker that no task uses is not looked for."""
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "wandb" else find(name, *a)
    )
    config = write_config(tmp_path, tiny_model("llama"))

    def keys(overrides: dict[str, Any]) -> list[str]:
        with pytest.raises(InputErrors) as told:
            make_plan(load_config(config, overrides))
        assert {p.what for p in told.value.problems} == {"wandb is not installed; pip install wandb"}
        return [".".join(map(str, p.key)) for p in told.value.problems]

    everywhere, of_one = {"train.report_to": ["wandb"]}, {"stages.animals.train.report_to": ["wandb"]}
    assert keys(of_one) == ["stages.animals.train.report_to"]
    assert keys(everywhere) == ["train.report_to"]
    assert keys(everywhere | of_one) == ["train.report_to", "stages.animals.train.report_to"]
    make_plan(
        load_config(config, everywhere | {f"stages.{t}.train.report_to": [] for t in ("colors", "animals")})
    )
