"""The examples in docstrings run, in a folder with support.yaml, its data, the run runs/support and the model tiny/."""

from __future__ import annotations

import doctest
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from blocks import REASONS, ROOT, docstrings, unmarked_examples

import nlora

SOURCE = ROOT / "src"
SKIPPED = {doctest.register_optionflag(word.upper()): word for word in REASONS}
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def _modules() -> dict[str, Path]:
    files = {".".join(f.relative_to(SOURCE).with_suffix("").parts): f for f in SOURCE.rglob("*.py")}
    return {name.removesuffix(".__init__"): file for name, file in sorted(files.items())}


MODULES = _modules()


def _with_examples() -> list[str]:
    texts = {name: [d[2] for d in docstrings(file.read_text())] for name, file in MODULES.items()}
    return [name for name, found in texts.items() if any(">>>" in d or unmarked_examples(d) for d in found)]


@pytest.fixture
def names(here: Path, tiny_model: Callable[[str], Path]) -> dict[str, Any]:
    """What examples may use without importing it."""
    (here / "tiny").symlink_to(tiny_model("llama"))
    return {"nlora": nlora, "Path": Path, "run": nlora.open_run("runs/support")}


@pytest.mark.parametrize("module", _with_examples())
def test_the_examples_of_a_module_run(module: str, request: pytest.FixtureRequest) -> None:
    file = MODULES[module]
    found = list(docstrings(file.read_text()))
    left = [line for _, _, text in found for line in unmarked_examples(text)]
    assert not left, f"{file.name}: write these examples with >>>, or remove them: {left}"
    names = vars(importlib.import_module(module)) | request.getfixturevalue("names")
    for name, line, text in found:
        test = doctest.DocTestParser().get_doctest(text, dict(names), f"{module}.{name}", str(file), line - 1)
        assert not (told := _run(test)), told


def _run(test: doctest.DocTest) -> str:
    """Runs the examples that carry no reason; what doctest reports, empty when all is well."""
    if any(example.options.get(doctest.SKIP) for example in test.examples):
        return f"+SKIP says no reason: write one of {', '.join('+' + word.upper() for word in REASONS)}"
    test.examples = [e for e in test.examples if not any(e.options.get(flag) for flag in SKIPPED)]
    told: list[str] = []
    doctest.DocTestRunner(optionflags=FLAGS).run(test, out=told.append)
    return "".join(told)


@pytest.mark.parametrize(
    ("docstring", "found"),
    [
        ("One line.", []),
        ("What it does.\n\n    >>> f(1)\n    2\n", []),
        ("What it does.\n\n    f(1)    # 2\n", ["f(1)    # 2"]),
        ("What it does.\n\n    from a import b\n", ["from a import b"]),
        (
            "What it does.\n\n    nlora run my.yaml seed=1\n\n    run.yaml   the configuration (resolved)\n",
            [],
        ),
        ("What it does.\n\nf(1)        # not indented\n", ["f(1)        # not indented"]),
        ("What it does.\n\nNot indented, and prose: f(1).\n", []),
    ],
)
def test_an_indented_block_that_reads_as_python_is_an_example(docstring: str, found: list[str]) -> None:
    assert unmarked_examples(docstring) == found


@pytest.mark.parametrize(
    ("example", "told"),
    [
        (">>> three + 1\n4\n", ""),
        (">>> three + 1\n5\n", "Expected:"),
        (">>> nobody\n", "NameError"),
        (">>> nobody  # doctest: +HUB\n>>> three\n3\n", ""),
        (">>> nobody  # doctest: +SKIP\n", "+SKIP says no reason"),
    ],
)
def test_an_example_runs_unless_it_says_why_not(example: str, told: str) -> None:
    found = _run(doctest.DocTestParser().get_doctest(example, {"three": 3}, "example", None, 0))
    assert told in found
    assert bool(found) == bool(told)
