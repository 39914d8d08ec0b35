"""The examples of the public names, of docs/api.md and of the README's Python, run with a tiny model."""

from __future__ import annotations

import doctest
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import nlora

TinyModel = Callable[[str], Path]
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", [name for name in nlora.__all__ if name != "__version__"])
def test_every_public_name_has_an_example_that_runs(name: str, here: Path) -> None:
    """And so has every public method and property of Run."""
    thing = getattr(nlora, name)
    names = {"nlora": nlora, "run": nlora.open_run("runs/support")}
    tests = doctest.DocTestFinder().find(thing, name, module=False, globs=names)
    examples = {test.name: test.examples for test in tests}
    assert examples[name], f"{name} has no example"
    if name == "Run":
        public = [n for n in vars(thing) if not n.startswith("_")]
        assert all(examples.get(f"Run.{n}") for n in public), public
    for test in tests:
        told: list[str] = []
        assert doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=told.append).failed == 0, (
            "".join(told)
        )


@pytest.mark.parametrize("page", ["README.md", "docs/api.md"])
def test_the_python_of_the_page_runs(page: str, here: Path, tiny_model: TinyModel) -> None:
    shutil.rmtree("runs")
    text = (ROOT / page).read_text()
    blocks = [b for b in re.findall(r"```python\n(.*?)```", text, re.S) if "import nlora" in b or "run." in b]
    assert blocks
    names: dict[str, Any] = {}
    for block in blocks:
        code = block.replace('"smollm2"', repr(str(tiny_model("llama"))))
        exec(compile(code, page, "exec"), names)
    assert list(Path("runs").iterdir())
