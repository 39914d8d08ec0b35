"""A run's folder: how stages are committed, what is refused, and where everything lies."""

import errno
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from helpers import scores_of
from nlora.config.schema import Config
from nlora.errors import RunError
from nlora.runs.folder import RunFolder, write_stage_record
from nlora.runs.layout import stage_name
from nlora.runs.stage_files import keep_trained
from nlora.runs.summary import Collision, StageRecord, read_summary

VERSIONS = {"torch": "2.9.0", "transformers": "5.1.0"}
ROWS = [(90.0, None), (70.0, 80.0)]


def config_of(folder: Path, **changes: Any) -> Config:
    return Config.model_validate({"tasks": ["agnews", "amazon"], "output_dir": str(folder), **changes})


def record_of(stage: int, task: str) -> StageRecord:
    return StageRecord(
        stage=stage,
        task=task,
        scores=scores_of(("agnews", "amazon"), ROWS[stage - 1]),
        train_seconds=10.0 * stage,
        evaluate_seconds=stage,
        train_samples_per_second=3.5,
        peak_memory_bytes=1000 * stage,
    )


def commit(run: RunFolder, stage: int) -> None:
    task = run.config.tasks[stage - 1].name
    with run.stage(stage) as folder:
        (folder / "adapter").mkdir()
        (folder / "adapter" / "adapter_model.safetensors").write_bytes(b"\x00" * 100)
        write_stage_record(folder, record_of(stage, task))


def names(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()


def test_a_run_from_the_first_stage_to_the_summary(tmp_path: Path) -> None:
    with RunFolder.open(config_of(tmp_path / "run"), VERSIONS) as run:
        assert read_summary(run.folder).status == "running"
        assert (run.committed_stages(), run.is_complete()) == ([], False)
        commit(run, 1)
        assert (run.committed_stages(), run.is_committed(2), run.is_complete()) == ([1], False, False)
        running = run.write_summary()
        assert (running.status, running.R, running.average_accuracy) == (
            "running",
            (ROWS[0], (None, None)),
            None,
        )
        commit(run, 2)
        assert not run.is_complete()  # the summary does not say so yet
        pairs = {"agnews|amazon": 0.25}
        complete = run.write_summary(Collision(threshold=1e-6, average_rate=0.25, pairs=pairs))
        assert run.is_complete()
        assert run.write_summary() == complete  # what was once measured stays
        assert run.stage_record(2) == record_of(2, "amazon")
        assert run.adapter_folder(2) == tmp_path / "run" / "outputs" / "2-amazon" / "adapter"
    assert read_summary(tmp_path / "run") == complete
    assert complete.average_accuracy == 75.0
    assert (complete.backward_transfer, complete.forgetting) == (-20.0, 20.0)
    assert (complete.train_seconds, complete.peak_memory_bytes) == ((10.0, 20.0), 2000)
    assert names(tmp_path / "run" / "outputs") == {"1-agnews", "2-amazon"}
    assert names(tmp_path / "run") == {".lock", "run.yaml", "outputs", "summary.json"}


def test_what_was_measured_of_fewer_stages_goes_with_the_next_one(tmp_path: Path) -> None:
    """An extension that is stopped before its last stage has no collisions, as a run that began with all tasks."""
    with RunFolder.open(config_of(tmp_path, tasks=["agnews"]), VERSIONS) as run:
        commit(run, 1)
        run.write_summary(Collision(threshold=1e-6, average_rate=0.25, pairs={}))
        (tmp_path / "analysis.json").write_text("{}")
    with RunFolder.open(config_of(tmp_path, tasks=["agnews", "amazon", "yelp"]), VERSIONS) as run:
        assert run.write_summary().collision is None
        commit(run, 2)
        assert not (tmp_path / "analysis.json").exists()
        assert run.write_summary().collision is None
    assert read_summary(tmp_path).collision is None


def test_zero_shot_scores_outlive_the_process(tmp_path: Path) -> None:
    with RunFolder.open(config_of(tmp_path), VERSIONS) as run:
        assert run.zero_shot() is None
        run.write_zero_shot({"agnews": 10.0, "amazon": 20.0}, {})
        with pytest.raises(ValueError, match=r"scores\.agnews"):
            run.write_zero_shot({"agnews": 101.0, "amazon": 20.0}, {})
    with RunFolder.open(config_of(tmp_path), VERSIONS) as run:
        assert run.zero_shot() == {"agnews": 10.0, "amazon": 20.0}
        assert run.write_summary().zero_shot == (10.0, 20.0)


def interrupt(folder: Path) -> None:
    (folder / "half.txt").write_text("half")
    raise KeyboardInterrupt


def test_a_folder_that_is_moved_while_the_run_writes_is_named(tmp_path: Path) -> None:
    """The stage was written at the old place, without the run's own files, and the run ended well."""
    with RunFolder.open(config_of(tmp_path / "run"), VERSIONS) as run:
        said = pytest.raises(RunError, match=r"run: was moved or removed while the run was writing; give its")
        with said, run.stage(1) as folder:
            (tmp_path / "run").rename(tmp_path / "moved")
            folder.mkdir(parents=True)
            write_stage_record(folder, record_of(1, "agnews"))
        assert run.committed_stages() == []


def test_a_stage_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with RunFolder.open(config_of(tmp_path), VERSIONS) as run:
        with pytest.raises(KeyboardInterrupt), run.stage(1) as folder:
            interrupt(folder)
        assert names(tmp_path / "outputs") == set()
        with pytest.raises(ValueError, match="stage 1 has no record"), run.stage(1) as folder:
            (folder / "all_results.json").write_text("{}")
        with pytest.raises(ValueError, match="is the record of stage 2, amazon"), run.stage(1) as folder:
            write_stage_record(folder, record_of(2, "amazon"))
        assert run.committed_stages() == []


def test_stages_are_committed_once_and_in_order(tmp_path: Path) -> None:
    with RunFolder.open(config_of(tmp_path), VERSIONS) as run:
        with pytest.raises(RunError, match="stage 1 must be committed first"):
            commit(run, 2)
        commit(run, 1)
        with pytest.raises(RunError, match="1-agnews: already committed"):
            commit(run, 1)
        with pytest.raises(ValueError, match="stage 3 of a run of 2 tasks"):
            run.is_committed(3)
        commit(run, 2)
    (tmp_path / "outputs" / "1-agnews").rename(tmp_path / "elsewhere")
    with pytest.raises(
        RunError, match=r"1-agnews: is missing, but later stages exist; restore it, or .*trained again"
    ):
        RunFolder.open(config_of(tmp_path), VERSIONS)
    (tmp_path / "elsewhere").rename(half := tmp_path / "outputs" / ".tmp-1-agnews")
    keep_trained(half, {"loss": 1.0})
    with pytest.raises(
        RunError, match=r"1-agnews: is missing, but later stages exist; restore it, or .*scored again"
    ):
        RunFolder.open(config_of(tmp_path), VERSIONS)


def test_outputs_of_something_else_are_not_taken_over(tmp_path: Path) -> None:
    (tmp_path / "outputs" / "1-agnews").mkdir(parents=True)
    with pytest.raises(RunError, match=r"has outputs but no run\.yaml"):
        RunFolder.open(config_of(tmp_path), VERSIONS)


def test_a_folder_that_cannot_be_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunError, match=r"file/run: cannot be written: Not a directory"):
        RunFolder.open(config_of(tmp_path / "file" / "run"), VERSIONS)


def test_a_full_disk_is_one_clear_line_and_keeps_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with RunFolder.open(config_of(tmp_path), VERSIONS) as run:
        before = (tmp_path / "summary.json").read_bytes()
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(
            RunError, match=r"summary\.json: cannot be written: No space left on device; free some space"
        ):
            run.write_summary()
        with pytest.raises(RunError, match="No space left on device"):
            commit(run, 1)
        with pytest.raises(RunError, match="No space left on device"), run.stage(1) as folder:
            full(0)  # as when saving the adapter fails
        assert (tmp_path / "summary.json").read_bytes() == before
        assert folder.name == ".tmp-1-agnews"
        assert names(tmp_path / "outputs") == set()
        assert not [name for name in names(tmp_path) if name.startswith(".tmp-")]


def test_other_errors_inside_a_stage_are_not_renamed(tmp_path: Path) -> None:
    with (
        RunFolder.open(config_of(tmp_path), VERSIONS) as run,
        pytest.raises(FileNotFoundError, match=r"missing\.jsonl"),
        run.stage(1),
    ):
        (tmp_path / "missing.jsonl").read_text()


def test_a_broken_stage_record_is_one_clear_line(tmp_path: Path) -> None:
    with RunFolder.open(config_of(tmp_path), VERSIONS) as run:
        commit(run, 1)
        record = run.stage_folder(1) / "stage.json"
        for spoil, said in (
            (lambda: record.write_text("{}"), "is broken"),
            (record.unlink, "is missing"),
        ):
            spoil()
            with pytest.raises(
                RunError, match=rf"stage\.json: {said}; restore it, or .* --repair, .* scored again"
            ):
                run.write_summary()


def test_a_record_that_may_not_be_read_is_not_called_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RunFolder.open(config_of(tmp_path), VERSIONS) as run:
        commit(run, 1)
        monkeypatch.setattr(Path, "read_text", forbidden)
        with pytest.raises(RunError) as told:
            run.stage_record(1)
    assert str(told.value) == f"{tmp_path}/outputs/1-agnews/stage.json: cannot be read: Permission denied"


def forbidden(*_: Any, **__: Any) -> Any:
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def test_the_log_is_attached_until_closed(tmp_path: Path) -> None:
    logger = logging.getLogger("nlora.somewhere")
    level = logging.getLogger("nlora").level
    with RunFolder.open(config_of(tmp_path), VERSIONS) as run:
        run.attach_log()
        run.attach_log()  # twice is once
        logger.info("stage %d begins", 1)
        logging.getLogger("transformers.trainer").warning("loss is large")
    logger.info("after")
    lines = (tmp_path / "logs" / "train_and_infer.log").read_text(encoding="utf-8").splitlines()
    assert [line.split(maxsplit=2)[2] for line in lines] == [
        "INFO nlora.somewhere: stage 1 begins",
        "WARNING transformers.trainer: loss is large",
    ]
    assert logging.getLogger("nlora").level == level


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("amazon", "3-amazon"),
        ("20 Newsgroups", "3-20 Newsgroups"),
        ("..", "3-%2E%2E"),
        ("a. ", "3-a%2E%20"),
        ('what?"<*>', "3-what%3F%22%3C%2A%3E"),
        ("50%", "3-50%25"),
        ("日本", "3-日本"),
        ("é" * 200, "3-" + "é" * 40),
    ],
)
def test_names_of_stages_are_names_that_a_folder_can_have(tmp_path: Path, task: str, expected: str) -> None:
    assert stage_name(3, task) == expected
    (tmp_path / stage_name(3, task)).mkdir()
    assert names(tmp_path) == {expected}


def test_nothing_here_loads_torch() -> None:
    imports = "import sys, nlora.runs.folder, nlora.runs.released_files, nlora.report.terminal"
    code = f"{imports}\nprint([m for m in ('torch', 'nltk') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
