"""Inputs that the fuzzer found worth keeping are read or refused, without a traceback and in their folder only."""

from __future__ import annotations

import importlib
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nlora.errors import Problem

CORPUS = Path(__file__).parents[1] / "fuzz_corpus"
NAMES = ("config", "readers", "texts")


@pytest.fixture(scope="module")
def targets() -> Iterator[Any]:
    """benchmarks/fuzz_targets.py, found as when the fuzzer is run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(CORPUS.parents[1] / "benchmarks"))
        yield importlib.import_module("fuzz_targets")


@pytest.mark.parametrize("name", NAMES)
def test_the_corpus_is_read_or_refused(targets: Any, name: str, tmp_path: Path) -> None:
    inputs = sorted((CORPUS / name).iterdir())
    assert len(inputs) > 5
    with targets.only_in(tmp_path):
        for path in inputs:
            try:
                targets.TARGETS[name](path.read_bytes(), tmp_path)
            except Exception as error:
                error.add_note(f"for {path}")
                raise


@pytest.mark.parametrize("name", NAMES)
@given(data=st.binary(max_size=80))
def test_any_bytes_are_read_or_refused(
    targets: Any, name: str, tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    folder = tmp_path_factory.getbasetemp()
    with targets.only_in(folder):
        targets.TARGETS[name](data, folder)


def test_whatever_is_done_outside_of_the_folder_is_noticed(targets: Any, tmp_path: Path) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    with targets.only_in(inside):
        (inside / "a").write_text("fine")
        (inside / "a").rename(inside / "b")
        Path(__file__).read_text(encoding="utf-8")
    for act in (
        lambda: outside.write_text("x"),
        lambda: (inside / "b").rename(outside),
        lambda: (tmp_path / "folder").mkdir(),
        lambda: subprocess.run(["true"], check=True),
    ):
        with pytest.raises(AssertionError, match="outside of the folder"), targets.only_in(inside):
            act()
    outside.unlink()  # no longer watched


@pytest.mark.parametrize(
    "problem", [Problem("b.csv:1", "wrong"), Problem("a.csv", " "), Problem("", "wrong")]
)
def test_a_problem_without_its_file_or_its_reason_is_a_finding(targets: Any, problem: Problem) -> None:
    targets.check_problems([Problem("a.csv:1", "wrong")], "a.csv")
    with pytest.raises(AssertionError):
        targets.check_problems([problem], "a.csv")
