"""Every public name has an example that runs, with a tiny model."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

import nlora


@pytest.mark.parametrize("name", [name for name in nlora.__all__ if name != "__version__"])
def test_every_public_name_has_an_example_that_runs(name: str, here: Path) -> None:
    """And so has every public method and property of Run."""
    thing = getattr(nlora, name)
    module = vars(importlib.import_module(thing.__module__))
    names = {**module, "nlora": nlora, "run": nlora.open_run("runs/support")}
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
