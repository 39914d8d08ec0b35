"""run.yaml: a folder belongs to one configuration, and repeats its run."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from helpers import learn
from nlora.config.load import load_config
from nlora.config.schema import Config
from nlora.errors import RunError
from nlora.runs.folder import RunFolder
from nlora.runs.run_yaml import differences, latest_versions, read_run_file, what_differs

VERSIONS = {"torch": "2.9.0", "transformers": "5.1.0"}


def config_of(folder: Path, **changes: Any) -> Config:
    return Config.model_validate({"tasks": ["agnews", "amazon"], "output_dir": str(folder), **changes})


def test_another_configuration_is_refused_with_its_differences(tmp_path: Path) -> None:
    RunFolder.open(config_of(tmp_path), VERSIONS).close()
    changed = config_of(tmp_path, train={"epochs": 2}, seed=7)
    with pytest.raises(RunError) as caught:
        RunFolder.open(changed, VERSIONS)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}: was started with another configuration; give another output_dir")
    assert "  train.epochs: 1.0 in the folder, 2.0 now\n  seed: 42 in the folder, 7 now" in message
    RunFolder.open(config_of(tmp_path), VERSIONS).close()  # the refused one has left nothing and no lock


def test_a_folder_of_an_nlora_without_a_key_goes_on_with_its_default(tmp_path: Path) -> None:
    RunFolder.open(config_of(tmp_path), VERSIONS).close()
    path = tmp_path / "run.yaml"
    record = yaml.safe_load(path.read_text(encoding="utf-8"))
    for key in ("protocol", "family", "seed"):
        del record["config"][key]
    path.write_text(yaml.safe_dump(record), encoding="utf-8")
    RunFolder.open(config_of(tmp_path), VERSIONS).close()
    with pytest.raises(RunError, match='  protocol: "repaired" in the folder, "released" now') as caught:
        RunFolder.open(config_of(tmp_path, protocol="released", seed=7), VERSIONS)
    assert "  seed: 42 in the folder, 7 now" in str(caught.value)
    # A key that this nlora does not know any more is shown as what it is.
    record["config"]["gone"] = 1
    path.write_text(yaml.safe_dump(record), encoding="utf-8")
    with pytest.raises(RunError, match="  gone: 1 in the folder, absent now"):
        RunFolder.open(config_of(tmp_path), VERSIONS)


def test_a_moved_folder_goes_on(tmp_path: Path) -> None:
    RunFolder.open(config_of(tmp_path / "a"), VERSIONS).close()
    (tmp_path / "a").rename(tmp_path / "b")
    with RunFolder.open(config_of(tmp_path / "b"), VERSIONS) as moved:
        assert moved.folder == tmp_path / "b"
        assert moved.committed_stages() == []


def test_other_versions_are_recorded_and_do_not_stop(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def versions_in_file() -> list[str]:
        record = read_run_file(tmp_path)
        return [
            record["versions"]["torch"],
            *(r["versions"]["torch"] for r in record.get("resumed_with", [])),
        ]

    RunFolder.open(config_of(tmp_path), VERSIONS).close()
    RunFolder.open(config_of(tmp_path), VERSIONS).close()
    assert versions_in_file() == ["2.9.0"]
    for _ in range(2):
        RunFolder.open(config_of(tmp_path), {**VERSIONS, "torch": "3.0.0"}).close()
    assert versions_in_file() == ["2.9.0", "3.0.0"]
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}: resumed with other versions than before: torch 2.9.0 -> 3.0.0"
    ]


def test_run_yaml_repeats_the_run(tmp_path: Path) -> None:
    config = config_of(tmp_path, train={"learning_rate": 5e-5}, method={"name": "nlora", "weight": 1e-5})
    RunFolder.open(config, VERSIONS, base_folder=tmp_path / "where my data lie").close()
    again = load_config(str(tmp_path / "run.yaml"))
    assert (again.config, again.base_folder) == (config, tmp_path / "where my data lie")


@pytest.mark.parametrize("text", ["", "config: {", "config: 3\nversions: {}", "- a", "\x00"])
def test_a_broken_run_yaml_is_one_clear_line(tmp_path: Path, text: str) -> None:
    RunFolder.open(config_of(tmp_path), VERSIONS).close()
    (tmp_path / "run.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(
        RunError, match=r"run\.yaml.*; restore what nlora wrote there, or give another folder$"
    ):
        RunFolder.open(config_of(tmp_path), VERSIONS)


def test_differences_name_the_dotted_key() -> None:
    def values_of(**changes: Any) -> dict[str, Any]:
        return Config.model_validate({"tasks": ["a", "b"], **changes}).model_dump(mode="json")

    assert differences(values_of(), values_of()) == []
    assert differences(values_of(), values_of(train={"epochs": 2}, seed=7)) == [
        "train.epochs: 1.0 in the folder, 2.0 now",
        "seed: 42 in the folder, 7 now",
    ]
    changed = values_of(tasks=["a"], method={"name": "nlora", "weight": 1}, lora={"targets": ["q"]})
    assert set(differences(values_of(), changed)) >= {
        'tasks.1.name: "b" in the folder, absent now',
        "method.weight: absent in the folder, 1 now",
        'lora.targets: null in the folder, ["q"] now',
    }


def test_a_version_that_yaml_reads_as_a_number_is_a_version(tmp_path: Path) -> None:
    RunFolder.open(config_of(tmp_path), VERSIONS).close()
    record = read_run_file(tmp_path)
    record["versions"]["torch"] = 2.9
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(record))
    assert latest_versions(tmp_path) == {**VERSIONS, "torch": "2.9"}


def test_a_summary_that_is_made_again_keeps_the_versions_that_the_run_was_learned_with(
    small_run: Callable[[str], Path], tmp_path: Path
) -> None:
    """Several processes that find all stages learned let the main one make the summary, alone."""
    made, run = small_run("nlora"), tmp_path / "run"
    shutil.copytree(made / "run", run)
    record = read_run_file(run)
    record["versions"]["processes"] = "2"
    (run / "run.yaml").write_text(yaml.safe_dump(record))
    (run / "summary.json").unlink()
    summary = learn(made / "config.yaml", f"output_dir={run}")
    assert summary.versions == record["versions"]
    assert not read_run_file(run).get("resumed_with")


@pytest.mark.parametrize(
    ("tasks", "lines"),
    [
        (["agnews"], ["task amazon is learned as task 2, and is missing now"]),
        (["agnews", "yelp"], ["task amazon is learned as task 2, and is missing now"]),
        (
            ["amazon", "agnews"],
            [
                "task agnews is learned as task 1, and is task 2 now",
                "task amazon is learned as task 2, and is task 1 now",
            ],
        ),
        (
            [{"name": "agnews", "instruction": "x"}, "amazon"],
            ['tasks.0.instruction: null in the folder, "x" now'],
        ),
    ],
)
def test_a_learned_task_that_is_gone_or_moved_is_one_line(
    tmp_path: Path, tasks: list[Any], lines: list[str]
) -> None:
    stages = {"amazon": {"train": {"epochs": 2}}}
    RunFolder.open(config_of(tmp_path, stages=stages), VERSIONS).close()
    for name in ("1-agnews", "2-amazon"):
        (tmp_path / "outputs" / name).mkdir(parents=True)
    kept = {} if "amazon" not in tasks else {"stages": stages}
    assert what_differs(tmp_path, config_of(tmp_path, tasks=tasks, **kept)) == lines
