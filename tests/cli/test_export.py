"""`nlora export`: what it prints, and one line for everything that cannot be exported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers import learn, write_config
from nlora.runs.export.record import RECORD_FILE

Nlora = Callable[..., Any]


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[[str], Path]) -> dict[str, Path]:
    """Runs of methods that not every form fits, by the method's name."""
    made = {}
    for method in ("osf", "pertask"):
        folder = tmp_path_factory.mktemp(method)
        learn(write_config(folder, tiny_model("llama"), method=method))
        made[method] = folder / "run"
    return made


def test_it_prints_form_path_size_and_scores(nlora: Nlora, here: Path) -> None:
    told = nlora("export", "runs/support", "--as", "merged", "out/merged")
    assert told.status == 0, told.err
    lines = told.out.splitlines()
    assert "nlora on " in lines[0]
    assert "stage 2 of 2, urgency" in lines[0]
    assert lines[1].split()[:2] == ["merged", "out/merged"]
    size = sum(
        f.stat().st_size for f in (here / "out/merged").iterdir() if f.name not in {"README.md", RECORD_FILE}
    )
    assert lines[1].endswith(f"{size / 1000:.3g} kB")
    assert lines[2].split() == ["task", "examples", "run", "export", "answers", "that", "differ"]
    for line, task in zip(lines[3:5], ("tickets", "urgency"), strict=True):
        name, examples, run, export, different = line.split()
        assert (name, examples, different) == (task, "9", "0")
        assert run == export
    assert not told.err


def test_sparse_prints_its_table(nlora: Nlora, here: Path) -> None:
    told = nlora("export", "runs/support", "--as", "sparse", "out")
    assert told.status == 0, told.err
    head = next(i for i, line in enumerate(told.out.splitlines()) if "entries kept" in line)
    rows = [line.split() for line in told.out.splitlines()[head + 1 : head + 6]]
    assert [row[1] for row in rows] == ["0.01", "0.1", "0.3", "1", "3"]
    assert [row[0].endswith("*") for row in rows] == [False, True, False, False, False]
    assert "as low-rank factors" in told.out


def test_what_a_smaller_rank_loses_is_said(nlora: Nlora, here: Path) -> None:
    told = nlora("export", "runs/support", "--as", "adapter", "--rank", "2", "out")
    assert told.status == 0, told.err
    assert "rank 2 loses " in told.out
    assert "% of the update's Frobenius norm" in told.out


RUN = "runs/support"
WRONG: dict[str, tuple[list[str], str]] = {
    "no run": (["nothing", "--as", "merged", "out"], "nothing: no such folder; give the output_dir of a run"),
    "form": ([RUN, "--as", "merge", "out"], "--as: unknown value 'merge'; did you mean 'merged'?"),
    "strange form": (
        [RUN, "--as", "zip", "out"],
        "--as: unknown value 'zip'; there are merged, adapter, adapters, sparse",
    ),
    "merge": (
        [RUN, "--as", "merged", "--merge", "magmix", "out"],
        "--merge: unknown value 'magmix'; did you mean 'magmax'?",
    ),
    "dtype": (
        [RUN, "--as", "merged", "--dtype", "bf16", "out"],
        "--dtype: unknown value 'bf16'; did you mean 'bfloat16'?",
    ),
    "rank 0": ([RUN, "--as", "adapter", "--rank", "0", "out"], "--rank: must be a whole number >= 1, not 0"),
    "rank too high": (
        [RUN, "--as", "adapter", "--rank", "9", "out"],
        "--rank: 9 is above the update's full rank 8; without --rank it is exact",
    ),
    "rank of a dense merge too high": (
        [RUN, "--as", "adapter", "--rank", "33", "--merge", "ties", "out"],
        "--rank: 33 is above the update's full rank 32",
    ),
    "dense merge without rank": (
        [RUN, "--as", "adapter", "--merge", "ties", "out"],
        "--rank: the result of --merge ties has no low rank; give the adapter one",
    ),
    "rank of merged": (
        [RUN, "--as", "merged", "--rank", "2", "out"],
        "--rank: is for --as adapter, not for --as merged; leave it out",
    ),
    "threshold of adapter": (
        [RUN, "--as", "adapter", "--threshold", "1", "out"],
        "--threshold: is for --as sparse, not for --as adapter; leave it out",
    ),
    "negative threshold": (
        [RUN, "--as", "sparse", "--threshold", "-1", "out"],
        "--threshold: must be a number >= 0, not -1",
    ),
    "density 0": (
        [RUN, "--as", "merged", "--merge", "ties", "--density", "0", "out"],
        "--density: must be a share > 0 and <= 1, not 0",
    ),
    "density of a sum": (
        [RUN, "--as", "merged", "--density", "0.5", "out"],
        "--density: is for --merge ties, dare_ties, dare_linear, magnitude_prune, not for sum",
    ),
    "merge of adapters": (
        [RUN, "--as", "adapters", "--merge", "ties", "out"],
        "--merge: --as adapters leaves the adapters apart; leave it out, or use --as adapter",
    ),
    "no examples": (
        [RUN, "--as", "merged", "--examples", "0", "out"],
        "--examples: must be a whole number >= 1, not 0",
    ),
    "stage 0": (
        [RUN, "--as", "merged", "--stage", "0", "out"],
        "--stage: 0 is the backbone before any training; nothing to export",
    ),
    "stage 7": (
        [RUN, "--as", "merged", "--stage", "7", "out"],
        "--stage: there is no stage 7; the run has 2, counted from 1",
    ),
    "task": (
        [RUN, "--as", "merged", "--task", "tickets", "out"],
        "--task: nlora has one model for all tasks; leave it out",
    ),
    "unknown task": (
        [RUN, "--as", "merged", "--task", "ticket", "out"],
        "--task: no task of the run is called 'ticket'; did you mean 'tickets'?",
    ),
    "folder in use": ([RUN, "--as", "merged", "tickets"], "OUT: tickets holds something already"),
    "a file": ([RUN, "--as", "merged", "support.yaml"], "OUT: support.yaml is a file; choose another folder"),
    "inside the run": (
        [RUN, "--as", "merged", "runs/support/out"],
        "OUT: runs/support/out is inside the run ",
    ),
    "repository": (
        [RUN, "--as", "merged", "--push", "a/b/c", "out"],
        "--push: 'a/b/c' is not the name of a repository, as user/model",
    ),
}


@pytest.mark.parametrize(("arguments", "message"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_request_is_one_clear_line(
    nlora: Nlora, here: Path, arguments: list[str], message: str
) -> None:
    before = sorted(here.rglob("*"))
    told = nlora("export", *arguments)
    assert told.status == 2
    assert told.err.startswith(f"error: {message}")
    assert len(told.err.splitlines()) == 1
    assert not told.out
    assert sorted(here.rglob("*")) == before


def test_all_wrong_options_are_told_at_once(nlora: Nlora, here: Path) -> None:
    told = nlora("export", RUN, "--as", "adapters", "--rank", "2", "--dtype", "float16", "out")
    assert told.status == 2
    assert told.err.startswith("2 errors:")


@pytest.mark.parametrize(
    ("method", "arguments", "message"),
    [
        ("osf", ["--as", "adapter"], "--as: osf trains the weights themselves and has no adapters"),
        ("osf", ["--as", "merged", "--merge", "ties"], "--merge: osf has one model and no updates to merge"),
        (
            "pertask",
            ["--as", "merged"],
            "--task: pertask has a model for each task; say which, as --task colors",
        ),
        (
            "pertask",
            ["--as", "adapters", "--task", "colors"],
            "--task: --as adapters exports the adapters of all",
        ),
        (
            "pertask",
            ["--as", "merged", "--stage", "1", "--task", "animals"],
            "--task: 'animals' is not learned yet at stage 1; use --stage 2",
        ),
    ],
)
def test_a_method_that_cannot_be_exported_so_is_named(
    nlora: Nlora, others: dict[str, Path], tmp_path: Path, method: str, arguments: list[str], message: str
) -> None:
    told = nlora("export", others[method], *arguments, tmp_path / "out")
    assert told.status == 2
    assert told.err.startswith(f"error: {message}")
    assert not list(tmp_path.iterdir())
