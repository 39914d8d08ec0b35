"""Methods are found by file name, describe themselves, and are built with every mistake reported at once."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from nlora.errors import InputErrors, Problem
from nlora.methods.registry import build, describe, method_names


def problems(name: str, options: dict[str, Any]) -> list[Problem]:
    with pytest.raises(InputErrors) as caught:
        build(name, options)
    return list(caught.value.problems)


def test_the_methods_are_the_files_of_the_folder() -> None:
    names = method_names()
    assert {"nlora", "inclora", "seqlora"} <= set(names)
    assert names == sorted(names)
    assert "base" not in names


def test_unknown_method() -> None:
    assert problems("nlroa", {}) == [
        Problem.at(("method", "name"), "unknown method 'nlroa'; did you mean 'nlora'?")
    ]
    [problem] = problems("zzz", {})
    assert problem.what.startswith("unknown method 'zzz'; the methods are ")
    assert ", nlora, " in problem.what


def test_every_mistake_is_reported_at_once_at_its_key() -> None:
    found = {p.where: p.what for p in problems("nlora", {"wieght": 1, "penalty": "l2", "weight": -1})}
    assert found == {
        "method.wieght": "unknown key; did you mean 'weight'?",
        "method.penalty": "must be update_l1, factor_l1 or update_l2, not 'l2'",
        "method.weight": "must be a number >= 0, or null, not -1",
    }


@pytest.mark.parametrize("weight", ["heavy", float("nan"), float("inf"), True, [1]])
def test_a_weight_is_a_finite_number(weight: Any) -> None:
    [problem] = problems("nlora", {"weight": weight})
    assert problem.where == "method.weight"
    assert problem.what.startswith("must be a ")
    assert "number >= 0, or null, not " in problem.what


def test_a_mistake_in_a_combination_of_options_is_reported_at_the_method() -> None:
    assert problems("nlora", {"penalty": "factor_l1", "reduction": "mean"}) == [
        Problem.at(
            ("method",),
            "penalty factor_l1 is the released formula, a sum; reduction mean needs update_l1 or update_l2",
        )
    ]


def test_a_method_without_options_says_so() -> None:
    assert problems("seqlora", {"weight": 1}) == [
        Problem.at(("method", "weight"), "unknown key; known here: none")
    ]


def test_describe_gives_the_docstring_and_every_option() -> None:
    info = describe("nlora")
    assert info.summary.startswith("N-LoRA: ")
    options = {option.name: option for option in info.options}
    assert list(options) == ["penalty", "weight", "reduction", "apply", "clipped", "growth"]
    assert options["penalty"].default == "update_l1"
    assert options["weight"].default == "null"
    assert "0: exactly incremental LoRA" in options["weight"].help
    with pytest.raises(InputErrors, match="unknown method 'x'"):
        describe("x")


def test_listing_checking_and_building_do_not_import_torch() -> None:
    code = (
        "import sys; from nlora.methods.registry import build, describe, method_names\n"
        "for name in method_names():\n"
        "    describe(name); build(name, {}).check([])\n"
        "sys.exit('torch' in sys.modules or 'peft' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
