"""The manual is built with all its links, and its notebook runs, on a tiny model."""

from __future__ import annotations

import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pytest
from blocks import ROOT


def test_the_manual_is_built_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    reference = (tmp_path / "reference" / "index.html").read_text(encoding="utf-8")
    assert 'id="nlora.next_task"' in reference
    assert "&gt;&gt;&gt;" not in reference.replace('class="gp">&gt;&gt;&gt;', ""), (
        "an example that is not code"
    )
    assert "https://fonts." not in reference


def test_a_docstring_becomes_markdown() -> None:
    markdown = runpy.run_path(str(ROOT / "docs" / "docstrings.py"))["markdown"]
    text = "Adds x[0].\n\na, b: Numbers,\n    any.\n\n    a = 1\n\n>>> add(1, 2)\n3"
    parts = [
        "Adds x\\[0\\].",
        "- `a, b`: Numbers, any.",
        "```text\na = 1\n```",
        "```pycon\n>>> add(1, 2)\n3\n```",
    ]
    assert markdown(text) == "\n\n".join(parts)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_notebook_of_the_tutorial_runs(tmp_path: Path, tiny_model: Callable[[str], Path]) -> None:
    notebook: Any = nbformat.read(ROOT / "docs" / "tutorial.ipynb", as_version=4)
    tiny = f'"model": "{tiny_model("llama")}", "train.epochs": 1, "tasks"'
    notebook.cells[1].source = notebook.cells[1].source.replace('"tasks"', tiny)
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute(cwd=str(tmp_path))
    assert (tmp_path / "runs" / "protected" / "report.html").is_file()
