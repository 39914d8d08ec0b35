"""summary.json: its keys are fixed, and a reader says in one line what is wrong with a file."""

import json
from pathlib import Path
from typing import Any

import pytest

from helpers import scores_of
from nlora.config.schema import Config
from nlora.errors import RunError
from nlora.runs.run_changes import settings_digest
from nlora.runs.summary import StageRecord, read_summary, summary_of, write_summary

KEYS = [
    "schema", "status", "name", "method", "model", "quantize", "seed", "tasks", "R", "zero_shot", "average_accuracy",
    "backward_transfer", "backward_transfer_over_all", "forgetting", "forward_transfer", "collision",
    "train_seconds", "prepare_seconds", "evaluate_seconds", "train_samples_per_second", "peak_memory_bytes",
    "trained_parameters", "replay", "replayed_examples", "versions", "settings_sha256", "protocol", "protocol_notes",
    "metrics", "decode", "digests", "notes", "serve", "routing", "general", "perplexity_change",
]  # fmt: skip
CONFIG = Config.model_validate(
    {"tasks": ["a", "b"], "name": "n", "method": "inclora", "model": "m", "seed": 3}
)


def record(stage: int, row: tuple[float | None, ...]) -> StageRecord:
    return StageRecord(
        stage=stage,
        task="ab"[stage - 1],
        scores=scores_of("ab", row),
        train_seconds=1,
        prepare_seconds=4,
        evaluate_seconds=2,
        train_samples_per_second=3,
    )


def write(folder: Path, **changes: Any) -> None:
    summary = summary_of(CONFIG, [record(1, (90, 30)), record(2, (70, 80))], zero_shot={"a": 10, "b": 20})
    write_summary(folder, summary)
    path = folder / "summary.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**values, **changes}), encoding="utf-8")


def test_the_keys_and_values_are_those_of_schema_1(tmp_path: Path) -> None:
    records = [record(1, (90, 30)), record(2, (70, 80))]
    write_summary(
        tmp_path, summary_of(CONFIG, records, zero_shot={"a": 10, "b": 20}, versions={"torch": "2"})
    )
    values = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    assert list(values) == KEYS
    assert values == {
        "schema": 1, "status": "complete", "name": "n", "method": "inclora", "model": "m", "quantize": None, "seed": 3,
        "tasks": ["a", "b"], "R": [[90, 30], [70, 80]], "zero_shot": [10, 20], "average_accuracy": 75,
        "backward_transfer": -20, "backward_transfer_over_all": -10, "forgetting": 20, "forward_transfer": 10,
        "collision": None,
        "train_seconds": [1, 1], "prepare_seconds": [4, 4],
        "evaluate_seconds": [2, 2], "train_samples_per_second": [3, 3],
        "peak_memory_bytes": None, "trained_parameters": None, "replay": "",
        "replayed_examples": [0, 0], "versions": {"torch": "2"},
        "settings_sha256": settings_digest(CONFIG),
        "protocol": "repaired", "protocol_notes": [], "metrics": {}, "decode": {}, "digests": {}, "notes": [],
        "serve": None, "routing": None, "general": [], "perplexity_change": None,
    }  # fmt: skip
    assert read_summary(tmp_path) == read_summary(str(tmp_path))


def test_the_digest_of_the_options_is_that_of_every_seed_and_of_no_other_option() -> None:
    """What is only about speed, place or data does not count: the data have digests of their own."""
    same: dict[str, object] = {"seed": 9, "output_dir": "else", "name": "o", "model": "other", "tasks": ["a"]}
    values = CONFIG.model_dump(exclude_defaults=True)
    digest = settings_digest(CONFIG)
    assert settings_digest(Config.model_validate({**values, **same})) == digest
    assert settings_digest(Config.model_validate({**values, "train": {"micro_batch_size": 2}})) == digest
    fast = {"stages": {"a": {"train": {"micro_batch_size": 2}}}}
    assert settings_digest(Config.model_validate({**values, **fast})) == digest
    for key, value in {
        "train": {"epochs": 7},
        "lora": {"r": 3},
        "method": "olora",
        "dtype": "bfloat16",
        "evaluate": {"validation_share": 0.5},  # what train.early_stopping holds out from train
    }.items():
        assert settings_digest(Config.model_validate({**values, key: value})) != digest


def test_a_run_that_goes_on_has_all_rows_and_no_averages() -> None:
    summary = summary_of(CONFIG, [record(1, (90, None))])
    assert (summary.status, summary.R) == ("running", ((90, None), (None, None)))
    assert summary.average_accuracy is summary.backward_transfer is summary.forgetting is None


def test_the_trained_parameters_are_those_of_the_largest_stage(tmp_path: Path) -> None:
    stages = [record(1, (90, 30)).model_copy(update={"trained_parameters": n}) for n in (7, 9)]
    second = stages[1].model_copy(update={"stage": 2, "task": "b"})
    assert summary_of(CONFIG, [stages[0], second]).trained_parameters == 9
    # A file of before there was the key is read as before.
    write(tmp_path)
    path = tmp_path / "summary.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    del values["trained_parameters"]
    path.write_text(json.dumps(values), encoding="utf-8")
    assert read_summary(tmp_path).trained_parameters is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": 2}, r"summary\.json: has schema 2, but this version of nlora reads 1; update nlora"),
        ({"R": [[1.0, 2.0]]}, "broken: R has 1 rows for 2 tasks"),
        ({"R": [[1.0, 2.0], [3.0, 200.0]]}, "broken: row 2, column 2: 200.0 is not a percentage"),
        ({"status": "done"}, "broken: status: "),
        ({"status": "done", "seed": "x"}, r"broken: status: .*\(and 1 more\)"),
    ],
)
def test_a_wrong_summary_is_one_line(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    write(tmp_path, **changes)
    with pytest.raises(RunError, match=message) as caught:
        read_summary(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_summary_that_is_not_there_or_not_json(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no summary\.json in it; give the output_dir of a run"):
        read_summary(tmp_path)
    with pytest.raises(RunError, match="nowhere: no such folder"):
        read_summary(tmp_path / "nowhere")
    (tmp_path / "summary.json").write_text("{", encoding="utf-8")
    with pytest.raises(RunError, match=r"summary\.json: cannot be read: Expecting"):
        read_summary(tmp_path)
    with pytest.raises(RunError, match="is a file; give the output_dir"):
        read_summary(tmp_path / "summary.json")
    (tmp_path / "summary.json").write_text("[]", encoding="utf-8")
    with pytest.raises(RunError, match="not the summary of a run"):
        read_summary(tmp_path)


def test_keys_that_a_later_nlora_adds_do_not_stop_this_one(tmp_path: Path) -> None:
    write(tmp_path, something_new=1)
    assert read_summary(tmp_path).average_accuracy == 75
