"""What the shell offers after Tab."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nlora.methods.registry import method_names

Nlora = Callable[..., Any]


@pytest.fixture
def offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nlora: Nlora) -> Callable[..., list[str]]:
    """offered(word, ...) -> what bash is told for the last word, in a folder with two runs and a YAML file."""
    for run in ("runs/a", "runs/demo/nlora"):
        (tmp_path / run).mkdir(parents=True)
        (tmp_path / run / "run.yaml").touch()
    (tmp_path / "mine.yaml").touch()
    monkeypatch.chdir(tmp_path)

    def ask(*words: str) -> list[str]:
        monkeypatch.setenv("_NLORA_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", "\n".join(["nlora", *words]))
        monkeypatch.setenv("COMP_CWORD", str(len(words)))
        told = nlora()
        assert told.status == 0, told.err
        return told.out.split()

    return ask


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("doc",), ["doctor"]),
        (("cp", "re"), ["recommended"]),
        (("check", "order_"), [f"order_{n}" for n in range(1, 7)]),
        (("run", "m"), ["mine.yaml"]),
        (("run", "demo", "seed=1", "method=seq"), ["method=seqft", "method=seqlora"]),
        (("run", "demo", "method", "=", "seq"), ["seqft", "seqlora"]),
        (("run", "demo", "seed"), []),
        (("ls", "m"), ["methods"]),
        (("predict", ""), ["runs/a", "runs/demo/nlora"]),
        (("eval", "runs/d"), ["runs/demo/nlora"]),
        (("compare", "runs/a", "runs/demo/"), ["runs/demo/nlora"]),
        (("predict", "other"), []),
    ],
)
def test_what_is_offered(
    offered: Callable[..., list[str]], words: tuple[str, ...], expected: list[str]
) -> None:
    assert offered(*words) == expected


def test_all_methods_are_offered_after_the_equals_sign(offered: Callable[..., list[str]]) -> None:
    assert offered("run", "demo", "method", "=") == list(method_names())


def test_the_script_for_bash_is_printed(monkeypatch: pytest.MonkeyPatch, nlora: Nlora) -> None:
    monkeypatch.setenv(
        "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1"
    )  # tests run under no shell of a person
    told = nlora("--show-completion", "bash")
    assert told.status == 0
    assert "complete -o default -F _nlora_completion nlora" in told.out
