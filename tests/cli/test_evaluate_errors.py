"""What `nlora eval` says to wrong requests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from evaluated_runs import Runs, ask

from nlora.cli import options
from nlora.errors import InputErrors, NloraError, RunError

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"stage": 3}, "--stage: there is no stage 3; the run has 2, counted from 1"),
    ({"stage": -1}, "--stage: there is no stage -1"),
    ({"tasks": "animal"}, "--tasks: unknown task 'animal'; did you mean 'animals'?"),
    ({"tasks": "zzz"}, "--tasks: unknown task 'zzz'; there are colors, animals, reuters"),
    ({"tasks": "colors,colors"}, "--tasks: duplicate task 'colors'"),
    ({"tasks": ""}, "--tasks: names no task; leave it out for all tasks that the run scored at the stage"),
    ({"tasks": ","}, "--tasks: names no task; leave it out"),
    ({"split": "dev"}, "evaluate.split=dev: must be test or validation, not 'dev'"),
    ({"settings": ["batch_sise=3"]}, "unknown key; did you mean 'batch_size'?"),
    (
        {"settings": ["zero_shot=true"]},
        "evaluate.zero_shot=true: changes nothing here; the keys of evaluate that do are batch_size, decode, ",
    ),
    ({"settings": ["decode"]}, "evaluate.decode: an override is a dotted key, '=' and a value"),
    (
        {"data": "nowhere", "tasks": "yelp"},
        "data: no such folder: nowhere; give its current path with --data",
    ),
    ({"tasks_file": "nowhere.yaml"}, "--tasks-file: no such file: nowhere.yaml"),
    ({"out": "nowhere/answers.jsonl"}, "--out: nowhere/answers.jsonl: there is no folder"),
]


@pytest.mark.parametrize(
    ("request_", "message"), WRONG, ids=[next(iter(r)) + str(i) for i, (r, _) in enumerate(WRONG)]
)
def test_wrong_requests_are_one_line_each(runs: Runs, request_: dict[str, Any], message: str) -> None:
    run, _ = runs("inclora")
    with pytest.raises(InputErrors) as told:
        ask(run, **request_)
    (problem,) = told.value.problems
    assert message in str(problem)


def test_a_place_that_cannot_be_written_is_told_before_anything_is_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(**place: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(options, "TemporaryFile", refused)
    with pytest.raises(InputErrors, match=r"^--out: .*answers\.jsonl cannot be written: Permission denied"):
        options.writable(str(tmp_path / "answers.jsonl"), "--out")


def test_mistakes_in_a_file_of_tasks_have_their_lines(runs: Runs, tmp_path: Path) -> None:
    run, _ = runs("inclora")
    file = tmp_path / "tasks.yaml"
    file.write_text("- colors\n- {name: a, test: gone.jsonl, labels: [x, y]}\n- {name: b, tset: c.jsonl}\n")
    with pytest.raises(InputErrors) as told:
        ask(run, tasks_file=str(file))
    assert [str(p) for p in told.value.problems] == [f"{file}:3: 2.tset: unknown key; did you mean 'test'?"]
    file.write_text("- colors\n- {name: a, test: gone.jsonl, labels: [x, y]}\n- nobody\n")
    with pytest.raises(InputErrors) as told:
        ask(run, tasks_file=str(file))
    first, second = map(str, told.value.problems)
    assert first.startswith("task a: test: no such file: gone.jsonl (looked in ")
    assert second.startswith(f"{file}:3: 2: unknown task 'nobody'")
    file.write_text("name: x\n")
    with pytest.raises(InputErrors, match=r"tasks\.yaml: must be a list of tasks"):
        ask(run, tasks_file=str(file))


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no run\.yaml in it; give the output_dir of a run"):
        ask(tmp_path)
    assert issubclass(RunError, NloraError)
