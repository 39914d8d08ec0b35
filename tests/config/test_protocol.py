"""protocol: released | repaired: which keys it sets, that set keys win, and that the notes say what is in force."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from helpers import write_config
from nlora.cli.run import run
from nlora.config.load import dump, load_config
from nlora.config.protocol import protocol_notes
from nlora.config.schema import Config, EvaluateOptions
from nlora.data.load import load_tasks
from nlora.errors import InputErrors
from nlora.runs.checks import family_problems
from nlora.runs.stage_results import pooled_line
from nlora.runs.summary import read_summary
from released_data import write_benchmark

TinyModel = Callable[[str], Path]


def config(**values: Any) -> Config:
    return Config.model_validate({"tasks": ["MNLI", "agnews"], "data": "CL_Benchmark", **values})


def choices(config: Config) -> tuple[str, str, str]:
    return config.train.truncate, config.train.batches, config.evaluate.decode


# What it sets


def test_it_sets_what_is_not_said() -> None:
    assert choices(config()) == choices(config(protocol="repaired")) == ("text", "by_length", "labels")
    assert choices(config(protocol="released")) == ("released", "random", "generate")


def test_a_key_that_is_set_wins() -> None:
    mixed = config(
        protocol="released", train={"batches": "by_length", "epochs": 3}, evaluate={"decode": "labels"}
    )
    assert choices(mixed) == ("released", "by_length", "labels")
    assert mixed.train.epochs == 3
    # Also as a value instead of a mapping: only what was set on it counts as said.
    typed = config(protocol="released", evaluate=EvaluateOptions(batch_size=8))
    assert (typed.evaluate.decode, typed.evaluate.batch_size) == ("generate", 8)


def test_the_given_values_stay_as_they_are() -> None:
    given: dict[str, Any] = {"tasks": ["a"], "protocol": "released", "train": {"epochs": 2}}
    Config.model_validate(given)
    assert given == {"tasks": ["a"], "protocol": "released", "train": {"epochs": 2}}


@pytest.mark.parametrize("section", ["train", "evaluate"])
def test_a_mistake_in_a_section_stays_a_mistake(section: str) -> None:
    with pytest.raises(ValidationError, match=section):
        config(protocol="released", **{section: 3})


def test_what_is_written_holds_the_choices_themselves(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("tasks: [a]\nprotocol: released\n", encoding="utf-8")
    loaded = load_config(str(path), ["evaluate.decode=labels"]).config
    text = dump(loaded)
    for line in ("protocol: released", "truncate: released", "batches: random", "decode: labels"):
        assert line in text
    path.write_text(text, encoding="utf-8")
    assert load_config(str(path)).config == loaded


def test_an_unknown_protocol_is_told_with_the_choices(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("tasks: [a]\nprotocol: relesed\n", encoding="utf-8")
    with pytest.raises(InputErrors, match=r"protocol.*released"):
        load_config(str(path))


# Examples without a label


@pytest.mark.parametrize(("protocol", "kept"), [("released", 6), ("repaired", 4)])
def test_unlabeled_test_examples(protocol: str, kept: int, tmp_path: Path) -> None:
    folder = write_benchmark(tmp_path / "data", test=6)
    task, _ = load_tasks(config(data=str(folder), protocol=protocol))
    assert len(task.test) == kept
    assert sum(example.label == "-" for example in task.test) == kept - 4


# The notes


def test_nothing_to_say_of_the_repaired_protocol() -> None:
    assert protocol_notes(config()) == []
    assert protocol_notes(config(data=None, evaluate={"split": "validation"})) == []
    of_first = {"MNLI": {"train": {"batches": "random"}}}
    assert protocol_notes(config(method="mtl", stages=of_first)) == []


def test_the_released_protocol_in_words() -> None:
    notes = protocol_notes(config(protocol="released"))
    for part in ("lose their end, 'Answer:' included", "drawn at random", "generated freely", "labels '-'",
                 "the release's dev files", "pooled over all test examples"):  # fmt: skip
        assert sum(part in note for note in notes) == 1, part
    assert len(notes) == 6


@pytest.mark.parametrize(
    ("values", "note"),
    [
        ({"train": {"truncate": "released", "max_source_tokens": 99}}, "prompts of more than 99 tokens lose"),
        ({"train": {"batches": "random"}}, "batches are drawn at random"),
        ({"stages": {"agnews": {"train": {"batches": "random"}}}}, "batches of agnews are drawn at random"),
        ({"evaluate": {"decode": "generate"}}, "answers are generated freely"),
        # Only what is trained: mtl trains once, with the last task's settings, and an adapter not at all.
        (
            {"method": "mtl", "stages": {"agnews": {"train": {"batches": "random"}}}},
            "batches are drawn at random",
        ),
        (
            {
                "tasks": [{"name": "old", "adapter": "x"}, "agnews"],
                "train": {"batches": "random"},
                "stages": {"old": {"train": {"batches": "by_length"}}},
            },
            "batches are drawn at random",
        ),
    ],
)
def test_single_keys_speak_under_the_repaired_protocol(values: dict[str, Any], note: str) -> None:
    (only,) = protocol_notes(config(**values))
    assert only.startswith(note)


@pytest.mark.parametrize(
    ("values", "gone", "note"),
    [
        ({"evaluate": {"decode": "labels"}}, "generated freely", "evaluate.decode is labels, the release has generate"),
        ({"train": {"truncate": "text"}}, "lose their end", "train.truncate is text, the release has released"),
        ({"train": {"batches": "by_length"}}, "drawn at random", "train.batches is by_length, the release has random"),
        ({"evaluate": {"split": "validation"}}, "dev files", "scored on examples held out from train"),
    ],
)  # fmt: skip
def test_what_is_called_released_and_is_not(values: dict[str, Any], gone: str, note: str) -> None:
    notes = protocol_notes(config(protocol="released", **values))
    assert not any(gone in line for line in notes)
    assert sum(line.startswith(f"not as released: {note}") for line in notes) == 1


def test_tasks_of_ones_own_have_no_unlabeled_examples() -> None:
    own = [{"name": "tickets", "train": "a.jsonl", "test": "b.jsonl"}]
    assert not any("'-'" in line for line in protocol_notes(config(protocol="released", tasks=own)))
    assert not any("'-'" in line for line in protocol_notes(config(protocol="released", data="builtin")))


def test_a_run_prints_its_notes_once_and_keeps_them(
    tmp_path: Path, tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_config(tmp_path, tiny_model("t5"), protocol="released", train={"batch_size": 8})
    quick = ["train.max_samples=8", "evaluate.max_samples=3", "train.max_target_tokens=8"]
    notes = protocol_notes(load_config(str(file), quick).config)
    monkeypatch.setenv("COLUMNS", "200")
    run(str(file), quick)
    printed = capsys.readouterr().out
    assert [printed.count(f"- {note}\n") for note in notes] == [1] * len(notes) == [1, 1, 1, 1]
    summary = read_summary(tmp_path / "run")
    assert (summary.protocol, list(summary.protocol_notes)) == ("released", notes)
    results = json.loads((tmp_path / "run/outputs/2-animals/predict_results.json").read_text())
    assert f"pooled exact match {results['predict_exact_match']:.1f}  (over 6 test examples" in printed


def test_the_pooled_score_weighs_examples_and_not_tasks(tmp_path: Path) -> None:
    assert pooled_line(tmp_path) is None
    (tmp_path / "predict_results.json").write_text(
        '{"predict_exact_match": 73.8813, "predict_samples": 70861}'
    )
    assert str(pooled_line(tmp_path)).startswith("pooled exact match 73.9  (over 70861 test examples")


# The kind of model


def test_a_model_of_the_wrong_kind_is_told_with_the_way_out() -> None:
    assert family_problems(config(), True) == family_problems(config(), False) == []
    t5 = config(family="encoder-decoder", model="google-t5/t5-large")
    assert family_problems(t5, True) == []
    (problem,) = family_problems(t5.model_copy(update={"model": "smollm2"}), False)
    assert str(problem) == (
        "model: smollm2 is a causal model, such as LLaMA, but these settings are meant for an encoder-decoder "
        "model, such as T5; take a recipe of its kind (nlora ls recipes), or set family=null to run it all the same"
    )
    (problem,) = family_problems(config(family="causal", model="google-t5/t5-base"), True)
    assert "google-t5/t5-base is an encoder-decoder model, such as T5, but" in problem.what
